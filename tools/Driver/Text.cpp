// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Text.h"

#include <array>
#include <cctype>
#include <charconv>
#include <cstdio>

using namespace moec;

std::string moec::sizeText(uint64_t bytes) {
  static constexpr std::array units = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < units.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
  return text.data();
}

std::string moec::countText(double count) {
  static constexpr std::array units = {"", " k", " M", " B", " T"};
  size_t unit = 0;
  while (count >= 1000 && unit + 1 < units.size()) {
    count /= 1000;
    ++unit;
  }
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f%s" : count < 10 ? "%.2f%s" : "%.1f%s", count, units[unit]);
  return text.data();
}

Result<uint64_t> moec::parseSize(std::string_view text) {
  uint64_t value = 0;
  auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit;
  for (char c : std::string_view(end, text.data() + text.size()))
    if (c != ' ')
      unit += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  int shift = -1;
  for (auto [name, bits] : {std::pair<std::string_view, int>{"k", 10}, {"m", 20}, {"g", 30}, {"t", 40}})
    if (unit == name || unit == std::string(name) + "b" || unit == std::string(name) + "ib")
      shift = bits;
  if (unit.empty() || unit == "b")
    shift = 0;
  if (code != std::errc() || shift < 0 || value > (UINT64_MAX >> shift))
    return Error{"'" + std::string(text) + "' is not a size such as 2GiB, 512MiB or 1000000"};
  return value << shift;
}
