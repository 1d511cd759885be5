// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Figures as people read and write them.

#ifndef MOEC_TOOLS_DRIVER_TEXT_H
#define MOEC_TOOLS_DRIVER_TEXT_H

#include "runtime/Support/Result.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace moec {

/// "1.5 GiB", "12.0 MiB", "640 B".
std::string sizeText(uint64_t bytes);

/// "671.0 B", "37 k": parameters, or operations.
std::string countText(double count);

/// "2GiB", "512 MiB", "1g" or a plain number of bytes. Powers of 1024 throughout.
Result<uint64_t> parseSize(std::string_view text);

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_TEXT_H
