// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/AttentionCommon.h"

#include "codegen/Cpu/Math.h"

#include "runtime/KernelAbi.h"

#include <limits>

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

Val AttentionWords::dot(Val sums, Val x, Val y) const {
  if (!halves)
    return b.fma(x, y, sums);
  if (b.instructions == Isa::Avx512Dot)
    return b.dotBf16(sums, x, y);
  // The same but for subnormal numbers, which would take more instructions than all else.
  auto [first, second] = b.unpairBf16(x);
  auto [ofFirst, ofSecond] = b.unpairBf16(y);
  return b.fma(first, ofFirst, b.fma(second, ofSecond, sums));
}

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
          next.push_back(dot(carried[g * vectors + v], key, queries[v]));
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
