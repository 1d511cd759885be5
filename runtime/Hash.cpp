// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Hash.h"

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

struct Xxh3::State {
  XXH3_state_t xxh3;
};

Xxh3::Xxh3() : state(std::make_unique<State>()) { XXH3_64bits_reset(&state->xxh3); }
Xxh3::Xxh3(const Xxh3 &other) : state(std::make_unique<State>()) { XXH3_copyState(&state->xxh3, &other.state->xxh3); }
Xxh3 &Xxh3::operator=(const Xxh3 &other) {
  XXH3_copyState(&state->xxh3, &other.state->xxh3);
  return *this;
}
Xxh3::~Xxh3() = default;

void Xxh3::update(const void *data, size_t size) { XXH3_64bits_update(&state->xxh3, data, size); }

void Xxh3::update(const MappedFile &file, uint64_t begin, uint64_t end) {
  constexpr uint64_t piece = 1u << 20;
  for (uint64_t at = begin; at < end; at += piece) {
    uint64_t size = std::min(piece, end - at);
    update(file.data() + at, size);
    file.release(at, size);
  }
}

std::string Xxh3::hex() const { return toHex(XXH3_64bits_digest(&state->xxh3)); }

Result<std::string> xxh3HexOfFile(const std::string &path) {
  MOEC_TRY(MappedFile file, MappedFile::open(path));
  Xxh3 hash;
  hash.update(file, 0, file.size());
  return hash.hex();
}

} // namespace moec
