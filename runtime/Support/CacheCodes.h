// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The codes that entries of a cache may be stored in.

#ifndef MOEC_RUNTIME_SUPPORT_CACHECODES_H
#define MOEC_RUNTIME_SUPPORT_CACHECODES_H

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>

namespace moec {

/// What the bytes of a cache are: elements of its type, or codes and scales as `#moe.cache_codes` says.
enum class CacheCodes : uint8_t { None, Int8, F8E4M3 };

/// The codes by the names that manifests and people use.
inline constexpr std::array<std::pair<std::string_view, CacheCodes>, 2> cacheCodes = {
    {{"int8", CacheCodes::Int8}, {"fp8", CacheCodes::F8E4M3}}};

/// None for other names.
constexpr CacheCodes cacheCodesFromString(std::string_view name) {
  for (const auto &[known, codes] : cacheCodes)
    if (known == name)
      return codes;
  return CacheCodes::None;
}

/// Empty for None.
constexpr std::string_view toString(CacheCodes codes) {
  for (const auto &[name, known] : cacheCodes)
    if (known == codes)
      return name;
  return {};
}

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_CACHECODES_H
