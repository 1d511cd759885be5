// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Tokenizer/Utf8.h"

namespace moec {

Utf8Char decodeUtf8(std::string_view bytes) {
  auto byte = [&](size_t i) { return uint8_t(bytes[i]); };
  uint8_t lead = byte(0);
  if (lead < 0x80)
    return {Utf8Char::Valid, 1, lead};
  // The range of the second byte shuts out overlong forms, surrogates and what lies above U+10FFFF.
  uint8_t length, low = 0x80, high = 0xBF;
  char32_t value;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
    value = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    value = lead & 0x0F;
    low = lead == 0xE0 ? 0xA0 : 0x80;
    high = lead == 0xED ? 0x9F : 0xBF;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    value = lead & 0x07;
    low = lead == 0xF0 ? 0x90 : 0x80;
    high = lead == 0xF4 ? 0x8F : 0xBF;
  } else {
    return {Utf8Char::Invalid, 1, 0};
  }
  for (uint8_t i = 1; i < length; ++i) {
    if (i == bytes.size())
      return {Utf8Char::Incomplete, i, 0};
    if (byte(i) < low || byte(i) > high)
      return {Utf8Char::Invalid, i, 0};
    value = value << 6 | (byte(i) & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Char::Valid, length, value};
}

void appendUtf8(std::string &out, char32_t c) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += char(0xC0 | c >> 6);
    out += char(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += char(0xE0 | c >> 12);
    out += char(0x80 | (c >> 6 & 0x3F));
    out += char(0x80 | (c & 0x3F));
  } else {
    out += char(0xF0 | c >> 18);
    out += char(0x80 | (c >> 12 & 0x3F));
    out += char(0x80 | (c >> 6 & 0x3F));
    out += char(0x80 | (c & 0x3F));
  }
}

size_t appendWellFormed(std::string &out, std::string_view bytes, bool last) {
  size_t at = 0;
  while (at < bytes.size()) {
    Utf8Char c = decodeUtf8(bytes.substr(at));
    if (c.kind == Utf8Char::Incomplete && !last)
      break;
    if (c.kind == Utf8Char::Valid)
      out.append(bytes, at, c.length);
    else
      appendUtf8(out, 0xFFFD);
    at += c.length;
  }
  return at;
}

bool isWellFormedUtf8(std::string_view bytes) {
  for (size_t at = 0; at < bytes.size();) {
    Utf8Char c = decodeUtf8(bytes.substr(at));
    if (c.kind != Utf8Char::Valid)
      return false;
    at += c.length;
  }
  return true;
}

bool isWhiteSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

} // namespace moec
