// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The hash by which an artifact knows its own files.

#ifndef MOEC_RUNTIME_HASH_H
#define MOEC_RUNTIME_HASH_H

#include "runtime/Support/Result.h"

#include <cstddef>
#include <string>

namespace moec {

/// XXH3 with 64 bits and seed 0, as the 16 lower-case hex digits of a manifest.
std::string xxh3Hex(const void *data, size_t size);
/// The same of a whole file.
Result<std::string> xxh3HexOfFile(const std::string &path);

} // namespace moec

#endif // MOEC_RUNTIME_HASH_H
