// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/Text.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <sstream>
#include <system_error>

namespace moec {

/// Bytes of the well-formed UTF-8 sequence at the start of `text`, or 0.
/// Table 3-7 of the Unicode standard: no overlong forms, no surrogates.
static size_t utf8Length(std::string_view text) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  auto within = [&](size_t i, unsigned low, unsigned high) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  unsigned lead = byte(0);
  if (lead < 0x80)
    return 1;
  if (lead >= 0xc2 && lead <= 0xdf)
    return within(1, 0x80, 0xbf) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef)
    return within(1, lead == 0xe0 ? 0xa0 : 0x80, lead == 0xed ? 0x9f : 0xbf) && within(2, 0x80, 0xbf) ? 3 : 0;
  if (lead >= 0xf0 && lead <= 0xf4)
    return within(1, lead == 0xf0 ? 0x90 : 0x80, lead == 0xf4 ? 0x8f : 0xbf) && within(2, 0x80, 0xbf) &&
                   within(3, 0x80, 0xbf)
               ? 4
               : 0;
  return 0;
}

std::string quote(std::string_view text, size_t limit) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out = "'";
  for (size_t i = 0; i < text.size();) {
    size_t length = utf8Length(text.substr(i));
    unsigned char lead = text[i];
    // C1 controls (U+0080..U+009F) drive terminals just as C0 ones do.
    bool control = lead < 0x20 || lead == 0x7f || (length == 2 && lead == 0xc2 && (text[i + 1] & 0xe0) == 0x80);
    if (i + std::max<size_t>(length, 1) > limit) {
      out += "...";
      break;
    }
    if (length == 0 || control) {
      for (size_t end = i + std::max<size_t>(length, 1); i < end; ++i) {
        unsigned char c = text[i];
        out += "\\x";
        out += digits[c >> 4];
        out += digits[c & 15];
      }
      continue;
    }
    out += text.substr(i, length);
    i += length;
  }
  return out + "'";
}

std::string numberText(double value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

std::string shapeToString(const std::vector<int64_t> &shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i)
      out += ", ";
    if (i == 8) {
      out += "...";
      break;
    }
    out += std::to_string(shape[i]);
  }
  return out + "]";
}

Result<std::vector<int32_t>> parseIds(std::string_view text, std::string_view what) {
  std::vector<int32_t> ids;
  for (const char *at = text.data(), *end = at + text.size();;) {
    int32_t id = 0;
    auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || (next != end && *next != ',') || id < 0)
      return Error{std::string(what) + " is " + quote(text) + ", expected ids between commas, such as 0,5,7"};
    ids.push_back(id);
    if (next == end)
      return ids;
    at = next + 1;
  }
}

std::string errnoToString(int error) {
  std::string text = std::generic_category().message(error);
  if (!text.empty())
    text[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(text[0])));
  return text;
}

} // namespace moec
