// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Zeroed anonymous memory that costs nothing until it is touched.

#ifndef MOEC_RUNTIME_LAZYMEMORY_H
#define MOEC_RUNTIME_LAZYMEMORY_H

#include "runtime/Support/Result.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace moec {

/// Page-aligned, with kReadableSlack readable bytes behind the end.
class LazyMemory {
public:
  LazyMemory() = default;
  /// `what` names the memory in the sentence of failure.
  static Result<LazyMemory> allocate(uint64_t bytes, const std::string &what);
  LazyMemory(LazyMemory &&other) noexcept;
  LazyMemory &operator=(LazyMemory &&other) noexcept;
  ~LazyMemory();

  std::byte *data() const { return base; }
  uint64_t size() const { return length; }
  /// Makes `[offset, offset + size)` zero; whole operating system pages go back to the system.
  void clear(uint64_t offset, uint64_t size) const;

private:
  std::byte *base = nullptr;
  uint64_t length = 0, mapped = 0;
};

} // namespace moec

#endif // MOEC_RUNTIME_LAZYMEMORY_H
