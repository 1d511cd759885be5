// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Foreign text inside our sentences: a name out of a hostile file may be long
/// or hold control characters, and must disturb neither terminal nor log.

#ifndef MOEC_RUNTIME_SUPPORT_TEXT_H
#define MOEC_RUNTIME_SUPPORT_TEXT_H

#include "runtime/Support/Result.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moec {

/// `text` between single quotes: control characters and bytes that are not
/// UTF-8 as `\x1b`, and what is longer than `limit` bytes cut off with `...`.
std::string quote(std::string_view text, size_t limit = 160);

/// "[2, 3]"; the rest of a shape of more than eight dimensions as "...".
std::string shapeToString(const std::vector<int64_t> &shape);

/// "0.5", "1e-05", "nan": six digits, for messages.
std::string numberText(double value);

/// Token ids between commas, "0,5,7", each at least 0. `what` names the text in errors.
Result<std::vector<int32_t>> parseIds(std::string_view text, std::string_view what);

/// What `errno` says, as the end of a sentence: "no such file or directory".
std::string errnoToString(int error);

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_TEXT_H
