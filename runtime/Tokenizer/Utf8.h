// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// UTF-8 with the replacement rule of Python and Rust: each maximal part of an
/// ill-formed sequence becomes one U+FFFD (Unicode Standard, section 3.9).

#ifndef MOEC_RUNTIME_TOKENIZER_UTF8_H
#define MOEC_RUNTIME_TOKENIZER_UTF8_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace moec {

/// The first character of some bytes.
struct Utf8Char {
  enum Kind : uint8_t {
    Valid,
    Invalid,   ///< `length` bytes that no continuation can repair
    Incomplete ///< all the bytes there are, which more bytes may complete
  };
  Kind kind;
  uint8_t length;     ///< bytes, >= 1
  char32_t codePoint; ///< if `Valid`
};

/// Looks at the start of `bytes`, which are not empty.
Utf8Char decodeUtf8(std::string_view bytes);

/// Appends `codePoint`, a Unicode scalar value.
void appendUtf8(std::string &out, char32_t codePoint);

/// Appends `bytes` to `out` with ill-formed parts replaced. Returns how many
/// bytes were used: all, or all but an incomplete character at the end if
/// `last` is false.
size_t appendWellFormed(std::string &out, std::string_view bytes, bool last);

/// Whether `bytes` hold well-formed UTF-8 only.
bool isWellFormedUtf8(std::string_view bytes);

/// The White_Space property of Unicode, which is frozen but for additions.
bool isWhiteSpace(char32_t codePoint);

} // namespace moec

#endif // MOEC_RUNTIME_TOKENIZER_UTF8_H
