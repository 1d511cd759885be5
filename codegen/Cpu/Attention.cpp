// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Attention over the paged latent cache, several heads of a token at a time so
/// that a cache entry, once loaded, serves all of them. Each page of 64 entries
/// is scored, then folded into the running softmax, so a head's bits depend on
/// its query, its entries and nothing else.

#include "codegen/Cpu/AttentionCommon.h"
#include "codegen/Cpu/Emitters.h"
#include "codegen/Cpu/Math.h"

#include "runtime/KernelAbi.h"

#include <limits>

namespace moec::cpu {

Softmax foldPage(KernelBuilder &b, Ptr row, Val entries, double scale, Val maximum, Val sum) {
  constexpr int64_t vectors = MOE_PAGE_TOKENS / kLanes;
  static_assert(vectors == 4);
  Vals s;
  for (int64_t v = 0; v < vectors; ++v) {
    Val raw = (row + v * kLanes).load(kLanes) * scale;
    s.push_back(b.select(b.firstLanes(entries - v * kLanes), raw, raw.like(-std::numeric_limits<double>::infinity())));
  }
  Val top = b.max(b.max(s[0], s[1]), b.max(s[2], s[3]));
  Softmax next;
  next.maximum = b.max(b.maxLanes(top), maximum);
  for (Val &value : s)
    value = exp(b, value - next.maximum);
  for (int64_t v = 0; v < vectors; ++v)
    (row + v * kLanes).store(s[v]);
  next.rescale = exp(b, maximum - next.maximum);
  next.sum = b.fma(sum, next.rescale, b.sumLanes((s[0] + s[1]) + (s[2] + s[3])));
  return next;
}

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

namespace {

class AttentionEmitter {
public:
  AttentionEmitter(KernelBuilder &b, const MlaAttentionSpec &spec, const Tiles &tiles)
      : b(b), spec(spec), tiles(tiles), scoredWidth((spec.latent + spec.rope + kLanes - 1) / kLanes * kLanes),
        latentVectors((spec.latent + kLanes - 1) / kLanes), latentWidth(latentVectors * kLanes) {}

  void emit() {
    q = b.arg(0, b.f32);
    positions = b.arg(1, b.i32);
    slots = b.arg(2, b.i32);
    pageTable = b.arg(3, b.i32);
    cache = b.arg(4, b.storage(spec.cache));
    out = b.arg(5, b.f32);
    constexpr int64_t block = MlaAttentionSpec::headBlock;
    queries = b.scratch(b.f32, block * scoredWidth);
    scores = b.scratch(b.f32, block * pageTokens);
    sums = b.scratch(b.f32, block * latentWidth);
    int64_t blocks = (spec.heads + block - 1) / block;
    int64_t rest = spec.heads % block;
    b.tasks([&](Val task) {
      Val token = task / blocks;
      Val which = task % blocks;
      Val firstHead = which * block;
      auto heads = [&] {
        if (spec.heads >= block)
          b.ifThen(firstHead + block <= spec.heads, [&] { headsOfToken(token, firstHead, block); });
        if (rest)
          b.ifThen(which == blocks - 1, [&] { headsOfToken(token, firstHead, rest); });
      };
      if (spec.runBelow)
        b.ifThen(runHasAtLeast(b, slots, token, spec.runBelow) ^ b.constant(b.i1, int64_t(1)), heads);
      else
        heads();
    });
  }

private:
  static constexpr int64_t pageTokens = MOE_PAGE_TOKENS;

  void headsOfToken(Val token, Val firstHead, int64_t heads) {
    for (int64_t h = 0; h < heads; ++h)
      prepareHead(token, firstHead + h, h);
    Val seen = b.convert((positions + token).load(), b.i64) + 1;
    Val slot = b.convert((slots + token).load(), b.i64);
    Ptr pages = pageTable + slot * b.pagesPerSlot();

    // Running maximum and sum of each head.
    Vals state(heads, b.cF32(-std::numeric_limits<double>::infinity()));
    state.append(heads, b.cF32(0));
    state =
        b.loop(b.cI64(0), (seen + (pageTokens - 1)) / pageTokens, 1, state, [&](Val page, llvm::ArrayRef<Val> carried) {
          Val entries = b.min(seen - page * pageTokens, b.cI64(pageTokens));
          Ptr base = cache + b.convert((pages + page).load(), b.i64) * (pageTokens * spec.width);
          return foldHeads(base, entries, heads, carried);
        });
    for (int64_t h = 0; h < heads; ++h) {
      Ptr row = out + token * spec.outStride + (firstHead + h) * spec.outHead;
      Ptr sum = sums + h * latentWidth;
      b.vectors(spec.latent, [&](Val offset, Val mask) {
        (row + offset).store((sum + offset).load(kLanes) / state[heads + h], mask);
      });
    }
  }

  /// Copies a head's query, with zeros where cache rows are padding, and clears its sums.
  void prepareHead(Val token, Val head, int64_t h) {
    Ptr row = q + token * spec.qStride + head * spec.qHead;
    Ptr query = queries + h * scoredWidth;
    Val zero = b.constant(b.vec(b.f32), 0.0);
    b.vectors(spec.latent + spec.rope, [&](Val offset, Val mask) {
      Val value = (row + offset).load(kLanes);
      (query + offset).store(mask.value ? b.select(mask, value, zero) : value);
    });
    Ptr sum = sums + h * latentWidth;
    b.loop(b.cI64(0), b.cI64(latentWidth), kLanes, [&](Val offset) { (sum + offset).store(zero); });
  }

  Vals foldHeads(Ptr page, Val entries, int64_t heads, llvm::ArrayRef<Val> carried) {
    score(page, entries, heads);
    Vals state(2 * heads), rescale(heads);
    for (int64_t h = 0; h < heads; ++h) {
      Softmax next = foldPage(b, scores + h * pageTokens, entries, spec.scale, carried[h], carried[heads + h]);
      state[h] = next.maximum;
      state[heads + h] = next.sum;
      rescale[h] = next.rescale;
    }
    addLatents(page, entries, heads, rescale);
    return state;
  }

  /// scores[h][j] = q_h . entry j. Lane l sums elements l, 16 + l, ... in order, then the lanes are
  /// summed as a tree. Entries beyond the last may be scored too; the caller masks them.
  void score(Ptr page, Val entries, int64_t heads) {
    int64_t group = tiles.scoreRows;
    b.loop(b.cI64(0), entries, group, [&](Val j) {
      Ptr rows = page + j * spec.width;
      Vals dots(heads * group, b.constant(b.vec(b.f32), 0.0));
      dots = b.loop(b.cI64(0), b.cI64(scoredWidth), kLanes, dots, [&](Val i, llvm::ArrayRef<Val> carried) {
        Vals query, next(carried.size());
        for (int64_t h = 0; h < heads; ++h)
          query.push_back((queries + h * scoredWidth + i).load(kLanes));
        for (int64_t g = 0; g < group; ++g) {
          Val entry = b.loadAsF32(rows + g * spec.width + i, spec.cache);
          for (int64_t h = 0; h < heads; ++h)
            next[h * group + g] = b.fma(query[h], entry, carried[h * group + g]);
        }
        return next;
      });
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t g = 0; g < group; ++g)
          (scores + h * pageTokens + j + g).store(b.sumLanes(dots[h * group + g]));
    });
  }

  /// sums[h] = sums[h] * rescale[h] + sum_j p[h][j] * latent j, j ascending.
  void addLatents(Ptr page, Val entries, int64_t heads, const Vals &rescale) {
    auto columns = [&](Val offset, int64_t width) {
      Vals totals;
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t v = 0; v < width; ++v)
          totals.push_back((sums + h * latentWidth + offset + v * kLanes).load(kLanes) * rescale[h]);
      totals = b.loop(b.cI64(0), entries, 1, totals, [&](Val j, llvm::ArrayRef<Val> carried) {
        Ptr row = page + j * spec.width + offset;
        Vals next(carried.size()), latent;
        for (int64_t v = 0; v < width; ++v)
          latent.push_back(b.loadAsF32(row + v * kLanes, spec.cache));
        for (int64_t h = 0; h < heads; ++h) {
          Val p = b.splat((scores + h * pageTokens + j).load());
          for (int64_t v = 0; v < width; ++v)
            next[h * width + v] = b.fma(p, latent[v], carried[h * width + v]);
        }
        return next;
      });
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t v = 0; v < width; ++v)
          (sums + h * latentWidth + offset + v * kLanes).store(totals[h * width + v]);
    };
    int64_t whole = latentVectors / tiles.latentVectors * tiles.latentVectors;
    if (whole)
      b.loop(b.cI64(0), b.cI64(whole * kLanes), tiles.latentVectors * kLanes,
             [&](Val offset) { columns(offset, tiles.latentVectors); });
    if (whole < latentVectors)
      columns(b.cI64(whole * kLanes), latentVectors - whole);
  }

  KernelBuilder &b;
  const MlaAttentionSpec &spec;
  const Tiles &tiles;
  int64_t scoredWidth; ///< elements of a query, padded to whole vectors
  int64_t latentVectors, latentWidth;
  Ptr q, positions, slots, pageTable, cache, out;
  Ptr queries, scores, sums; ///< [heads][scoredWidth], [heads][page tokens], [heads][latentWidth]
};

} // namespace

void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaAttentionSpec &spec, const Tiles &tiles) {
  b.kernel(symbol, [&] { AttentionEmitter(b, spec, tiles).emit(); });
}

} // namespace moec::cpu
