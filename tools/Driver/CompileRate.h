// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// How fast this machine makes weights.

#ifndef MOEC_TOOLS_DRIVER_COMPILERATE_H
#define MOEC_TOOLS_DRIVER_COMPILERATE_H

#include "runtime/Support/Result.h"

#include <string>

namespace moec {

/// Bytes/s that a compile reads and writes together: packs 128 MiB as a compile
/// does, with all cores, from a file of `directory` that is not cached into
/// files beside it, until they are durable. All of it lies in one directory
/// that is removed; it takes as long as the disk needs for 384 MiB.
Result<double> measureCompileRate(const std::string &directory);

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_COMPILERATE_H
