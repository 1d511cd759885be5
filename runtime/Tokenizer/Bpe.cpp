// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Tokenizer/Bpe.h"

#include "runtime/Support/Text.h"
#include "runtime/Tokenizer/Utf8.h"

#include <algorithm>

namespace moec {

const std::array<char32_t, 256> &byteAlphabet() {
  static const std::array<char32_t, 256> alphabet = [] {
    std::array<char32_t, 256> result{};
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      result[byte] = printable ? byte : next++;
    }
    return result;
  }();
  return alphabet;
}

/// Spellings of all bytes in UTF-8.
static const std::array<std::string, 256> &byteSpellings() {
  static const std::array<std::string, 256> spellings = [] {
    std::array<std::string, 256> result;
    for (unsigned byte = 0; byte < 256; ++byte)
      appendUtf8(result[byte], byteAlphabet()[byte]);
    return result;
  }();
  return spellings;
}

std::string bytesOfToken(std::string_view token) {
  static const std::array<int16_t, 0x144> byteOf = [] {
    std::array<int16_t, 0x144> result;
    result.fill(-1);
    for (unsigned byte = 0; byte < 256; ++byte)
      result[byteAlphabet()[byte]] = int16_t(byte);
    return result;
  }();
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    Utf8Char c = decodeUtf8(token.substr(at));
    if (c.kind != Utf8Char::Valid || c.codePoint >= byteOf.size() || byteOf[c.codePoint] < 0)
      return std::string(token);
    bytes += char(byteOf[c.codePoint]);
    at += c.length;
  }
  return bytes;
}

Result<Bpe> Bpe::create(const BpeSpec &spec, const std::string &what) {
  Bpe bpe;
  bpe.ignoreMerges = spec.ignoreMerges;
  bpe.ids.reserve(spec.vocab.size());
  uint64_t largest = 0;
  for (const auto &[token, id] : spec.vocab)
    largest = std::max(largest, id);
  if (largest > kMaxId)
    return Error{what + ": vocab has the id " + std::to_string(largest) + ", but at most " + std::to_string(kMaxId) +
                 " is supported"};
  std::vector<bool> taken(largest + 1);
  for (const auto &[token, id] : spec.vocab) {
    if (taken[id])
      return Error{what + ": vocab gives the id " + std::to_string(id) + " twice, the second time to " + quote(token)};
    taken[id] = true;
    if (!bpe.ids.emplace(token, int32_t(id)).second)
      return Error{what + ": vocab has the token " + quote(token) + " twice"};
  }

  bpe.merges = FlatMap<Merge>(spec.merges.size());
  std::string joined;
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto &[left, right] = spec.merges[rank];
    joined.assign(left).append(right);
    int32_t found[3];
    const std::string *names[3] = {&left, &right, &joined};
    for (int i = 0; i < 3; ++i) {
      auto it = bpe.ids.find(*names[i]);
      if (it == bpe.ids.end())
        return Error{what + ": merge " + std::to_string(rank) + " of " + quote(left) + " and " + quote(right) +
                     " needs the token " + quote(*names[i]) + ", which is not in the vocab"};
      found[i] = it->second;
    }
    bpe.merges[pairKey(found[0], found[1])] = {uint32_t(rank), found[2]};
  }

  for (unsigned byte = 0; byte < 256; ++byte)
    bpe.byteIds[byte] = bpe.find(byteSpellings()[byte]).value_or(-1);
  return bpe;
}

std::optional<int32_t> Bpe::find(std::string_view token) const {
  auto it = ids.find(std::string(token));
  if (it == ids.end())
    return std::nullopt;
  return it->second;
}

bool Bpe::coversAllBytes() const { return std::find(byteIds.begin(), byteIds.end(), -1) == byteIds.end(); }

void Bpe::encode(std::string_view word, Scratch &scratch, std::vector<int32_t> &out) const {
  if (ignoreMerges) {
    scratch.spelled.clear();
    for (char byte : word)
      scratch.spelled += byteSpellings()[uint8_t(byte)];
    if (auto it = ids.find(scratch.spelled); it != ids.end()) {
      out.push_back(it->second);
      return;
    }
  }

  auto &symbols = scratch.symbols;
  auto &heap = scratch.heap;
  symbols.clear();
  heap.clear();
  for (char byte : word) {
    int32_t id = byteIds[uint8_t(byte)];
    if (id >= 0)
      symbols.push_back({int64_t(symbols.size()) - 1, int64_t(symbols.size()) + 1, id, false});
  }
  if (symbols.empty())
    return;
  symbols.back().next = -1;

  auto mergeAt = [&](int64_t place) -> const Merge * {
    int64_t next = symbols[place].next;
    return next < 0 ? nullptr : merges.find(pairKey(symbols[place].id, symbols[next].id));
  };
  auto later = [](const Scratch::Candidate &a, const Scratch::Candidate &b) {
    return a.rank != b.rank ? a.rank > b.rank : a.place > b.place;
  };
  auto push = [&](int64_t place) {
    if (const Merge *merge = mergeAt(place)) {
      heap.push_back({merge->rank, merge->merged, uint64_t(place)});
      std::push_heap(heap.begin(), heap.end(), later);
    }
  };

  for (size_t place = 0; place < symbols.size(); ++place)
    if (const Merge *merge = mergeAt(int64_t(place)))
      heap.push_back({merge->rank, merge->merged, place});
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    Scratch::Candidate top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    int64_t place = int64_t(top.place);
    // Merges around it may have changed this pair since it was queued.
    const Merge *merge = symbols[place].merged ? nullptr : mergeAt(place);
    if (!merge || merge->merged != top.merged)
      continue;
    int64_t right = symbols[place].next, after = symbols[right].next;
    symbols[place].id = top.merged;
    symbols[place].next = after;
    symbols[right].merged = true;
    if (after >= 0)
      symbols[after].previous = place;
    if (symbols[place].previous >= 0)
      push(symbols[place].previous);
    push(place);
  }
  for (int64_t place = 0; place >= 0; place = symbols[place].next)
    out.push_back(symbols[place].id);
}

} // namespace moec
