// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/AttentionCommon.h"

#include "codegen/Cpu/Math.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace moec::cpu {

Val runHasAtLeast(KernelBuilder &b, Ptr slots, Val token, int64_t length) {
  Val slot = (slots + token).load();
  // One more for each neighbour up to the first of another slot.
  auto count = [&](Val most, int64_t direction) {
    return b.loop(b.cI64(0), b.min(most, b.cI64(length - 1)), 1, {b.cI64(0)},
                  [&](Val distance, llvm::ArrayRef<Val> carried) -> Vals {
                    Val same = (slots + (token + (distance + 1) * direction)).load() == slot;
                    return {b.select(same & (carried[0] == distance), distance + 1, carried[0])};
                  })[0];
  };
  return count(token, -1) + count(b.tokens() - 1 - token, 1) + 1 >= length;
}

//===----------------------------------------------------------------------===//
// Pages
//===----------------------------------------------------------------------===//

CachePages::CachePages(KernelBuilder &b, Ptr cache, DType type, CacheCodes codes, CodedEntry entry, int64_t width)
    : b(b), cache(cache), codes(codes), entry(entry), width(width),
      element(codes == CacheCodes::None ? type : DType::U8),
      stride(codes == CacheCodes::None ? width : entry.stride()) {
  // Vectors that begin in the last entry may end behind it.
  if (codes != CacheCodes::None)
    unpacked = b.scratch(b.i16, MOE_PAGE_TOKENS * width + 4 * kLanes);
}

Ptr CachePages::read(Val page, Val count) const {
  Ptr from = stored(page);
  if (codes == CacheCodes::None)
    return from;
  b.loop(b.cI64(0), count, 1, [&](Val j) { unpack(from + j * stride, unpacked + j * width); });
  return unpacked;
}

/// What 32 codes stand for; those of e4m3 over `weightScale`, as `loadAsF32` has them, but none is NaN.
std::pair<Val, Val> CachePages::codeValues(Ptr from) const {
  if (codes == CacheCodes::Int8)
    return {b.convert(from.load(kLanes), b.f32), b.convert((from + kLanes).load(kLanes), b.f32)};
  Val bits = (b.convert(from.load(2 * kLanes), b.i16) << 7) & static_cast<int16_t>(0xBFFF);
  Val halves = b.bitcast(bits, b.f16);
  llvm::SmallVector<int64_t> lanes(2 * kLanes);
  std::iota(lanes.begin(), lanes.end(), 0);
  llvm::ArrayRef<int64_t> all(lanes);
  return {b.convert(b.shuffle(halves, halves, all.take_front(kLanes)), b.f32),
          b.convert(b.shuffle(halves, halves, all.drop_front(kLanes)), b.f32)};
}

/// One entry. Whole vectors, in rising order: what one writes too many, the next one or the next entry writes over.
void CachePages::unpack(Ptr from, Ptr to) const {
  Ptr scales{(from + entry.scalesAt()).base, b.f32}, rope{(from + entry.ropeAt()).base, b.i16};
  double codeScale = codes == CacheCodes::F8E4M3 ? KernelBuilder::weightScale(DType::F8E4M3) : 1;
  auto group = [&](Val index, int64_t columns) {
    Val scale = b.splat((scales + index).load() * codeScale);
    Val begin = index * CodedEntry::group;
    for (int64_t i = 0; i < columns; i += 2 * kLanes) {
      auto [first, second] = codeValues(from + begin + i);
      (to + begin + i).store(b.toBf16Fast(first * scale, second * scale));
    }
  };
  int64_t whole = entry.latent / CodedEntry::group, used = entry.latent + entry.rope;
  b.loop(b.cI64(0), b.cI64(whole), 1, [&](Val index) { group(index, CodedEntry::group); });
  if (int64_t rest = entry.latent % CodedEntry::group)
    group(b.cI64(whole), rest);
  // Behind the rope part are zeros, as in other caches: a last pair of elements may reach there.
  for (int64_t at = entry.latent; at < width; at += kLanes) {
    int64_t left = std::clamp<int64_t>(used - at, 0, kLanes);
    Val zero = b.constant(b.vec(b.i16), int64_t(0));
    Val value = left ? (rope + (at - entry.latent)).load(kLanes) : zero;
    (to + at).store(left % kLanes ? b.select(b.firstLanes(left), value, zero) : value);
  }
}

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

Val AttentionWords::dot(Val sums, Val x, Val y) const { return halves ? b.dotBf16(sums, x, y) : b.fma(x, y, sums); }

//===----------------------------------------------------------------------===//
// Queries
//===----------------------------------------------------------------------===//

void AttentionWords::transposeRows(llvm::ArrayRef<Ptr> rows, int64_t width, Ptr to) const {
  assert(rows.size() == kLanes && "a lane is a row");
  const int64_t step = kLanes * elements, whole = width / step * step;
  auto part = [&](Val offset, int64_t count) {
    Vals lines;
    for (Ptr row : rows)
      lines.push_back(wordsOfRow(row + offset, count));
    transpose(lines);
    Ptr place = to + offset / elements * kLanes;
    for (int64_t i = 0; i < kLanes; ++i)
      (place + i * kLanes).store(lines[i]);
  };
  if (whole)
    b.loop(b.cI64(0), b.cI64(whole), step, [&](Val offset) { part(offset, step); });
  if (whole < width)
    part(b.cI64(whole), width - whole);
}

/// 16 words of a row of f32, of which `width` elements count.
Val AttentionWords::wordsOfRow(Ptr from, int64_t width) const {
  Vals floats;
  for (int64_t v = 0; v < elements; ++v) {
    int64_t left = std::clamp<int64_t>(width - v * kLanes, 0, kLanes);
    Val zero = b.constant(b.vec(b.f32), 0.0);
    Val value = left ? (from + v * kLanes).load(kLanes) : zero;
    floats.push_back(left < kLanes ? b.select(b.firstLanes(left), value, zero) : value);
  }
  if (!halves)
    return floats[0];
  llvm::SmallVector<int64_t> even, odd;
  for (int64_t l = 0; l < kLanes; ++l) {
    even.push_back(2 * l);
    odd.push_back(2 * l + 1);
  }
  return b.pairBf16(b.shuffle(floats[0], floats[1], even), b.shuffle(floats[0], floats[1], odd));
}

/// Lane l of line i with lane i of line l, exchanging ever larger squares.
void AttentionWords::transpose(Vals &lines) const {
  for (int64_t s = 1; s < kLanes; s *= 2) {
    llvm::SmallVector<int64_t> upper, lower;
    for (int64_t l = 0; l < kLanes; ++l) {
      upper.push_back(l & s ? kLanes + l - s : l);
      lower.push_back(l & s ? kLanes + l : l + s);
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      if (i & s)
        continue;
      Val a = lines[i], c = lines[i + s];
      lines[i] = b.shuffle(a, c, upper);
      lines[i + s] = b.shuffle(a, c, lower);
    }
  }
}

//===----------------------------------------------------------------------===//
// Scores and probabilities
//===----------------------------------------------------------------------===//

void AttentionWords::addScores(const Products &of, Val keys, int64_t tile, int64_t vectors, Ptr scores,
                               bool begins) const {
  b.loop(b.cI64(0), keys, tile, [&](Val j) {
    Ptr rows = of.keys + j * of.keyStride;
    auto place = [&](int64_t g, int64_t v) { return scores + (j + (g + v * MOE_PAGE_TOKENS)) * kLanes; };
    Vals sums;
    for (int64_t g = 0; g < tile; ++g)
      for (int64_t v = 0; v < vectors; ++v)
        sums.push_back(begins ? b.constant(b.vec(b.f32), 0.0) : place(g, v).load(kLanes));
    sums = b.loop(b.cI64(0), b.cI64(of.words), 1, sums, [&](Val word, llvm::ArrayRef<Val> carried) {
      Vals queries, next;
      for (int64_t v = 0; v < vectors; ++v)
        queries.push_back((of.queries + word * kLanes + v * of.queryStride).load(kLanes));
      for (int64_t g = 0; g < tile; ++g) {
        Val key = b.splat((rows + word + g * of.keyStride).load());
        for (int64_t v = 0; v < vectors; ++v)
          next.push_back(dot(carried[g * vectors + v], queries[v], key));
      }
      return next;
    });
    for (int64_t g = 0; g < tile; ++g)
      for (int64_t v = 0; v < vectors; ++v)
        place(g, v).store(sums[g * vectors + v]);
  });
}

AttentionWords::Softmax AttentionWords::softmax(Ptr scores, Val keys, Val seen, double scale, Val maximum, Val sum,
                                                Ptr probabilities) const {
  auto scaled = [&](Val j) {
    Val score = (scores + j * kLanes).load(kLanes) * scale;
    Val counts = b.splat(b.convert(j, b.i32)) < seen;
    return b.select(counts, score, score.like(-std::numeric_limits<double>::infinity()));
  };
  Softmax next;
  next.maximum = b.loop(b.cI64(0), keys, 1, {maximum},
                        [&](Val j, llvm::ArrayRef<Val> carried) -> Vals { return {b.max(scaled(j), carried[0])}; })[0];
  next.factor = exp(b, maximum - next.maximum);
  Val ofKeys = b.loop(b.cI64(0), keys, elements, {sum.like(0.0)}, [&](Val j, llvm::ArrayRef<Val> carried) -> Vals {
    Val p = exp(b, scaled(j) - next.maximum);
    Ptr to = probabilities + j / elements * kLanes;
    if (!halves) {
      to.store(p);
      return {carried[0] + p};
    }
    Val pair = paired(p, exp(b, scaled(j + 1) - next.maximum));
    to.store(pair);
    // What is summed is what values are multiplied by.
    auto [first, second] = b.unpairBf16(pair);
    return {carried[0] + first + second};
  })[0];
  next.sum = b.fma(sum, next.factor, ofKeys);
  return next;
}

} // namespace moec::cpu
