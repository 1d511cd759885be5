// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The hash by which an artifact knows its own files.

#ifndef MOEC_RUNTIME_HASH_H
#define MOEC_RUNTIME_HASH_H

#include "runtime/Support/File.h"
#include "runtime/Support/Result.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace moec {

/// XXH3 with 64 bits and seed 0, as the 16 lower-case hex digits of a manifest.
std::string xxh3Hex(const void *data, size_t size);
/// The same of a whole file.
Result<std::string> xxh3HexOfFile(const std::string &path);

/// The same of pieces that come one after the other. A copy goes on by itself.
class Xxh3 {
public:
  Xxh3();
  Xxh3(const Xxh3 &other);
  Xxh3 &operator=(const Xxh3 &other);
  ~Xxh3();

  void update(const void *data, size_t size);
  /// Adds bytes `[begin, end)` of `file`, which stay resident only piece by piece.
  void update(const MappedFile &file, uint64_t begin, uint64_t end);
  /// The hash of all so far.
  std::string hex() const;

private:
  struct State;
  std::unique_ptr<State> state;
};

} // namespace moec

#endif // MOEC_RUNTIME_HASH_H
