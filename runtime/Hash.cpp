// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Hash.h"

#include "runtime/Support/File.h"

#include <algorithm>
#include <cstdio>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace moec {

static std::string toHex(XXH64_hash_t hash) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

std::string xxh3Hex(const void *data, size_t size) { return toHex(XXH3_64bits(data, size)); }

Result<std::string> xxh3HexOfFile(const std::string &path) {
  MOEC_TRY(MappedFile file, MappedFile::open(path));
  // In pieces, so that a file larger than memory does not push everything else out of it.
  constexpr uint64_t piece = 64u << 20;
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (uint64_t at = 0; at < file.size(); at += piece) {
    uint64_t size = std::min(piece, file.size() - at);
    XXH3_64bits_update(&state, file.data() + at, size);
    file.release(at, size);
  }
  return toHex(XXH3_64bits_digest(&state));
}

} // namespace moec
