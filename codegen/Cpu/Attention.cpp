// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Attention over the paged latent cache, 16 heads of a token at a time. Each
/// lane of a vector is a head: an element of a cache entry, broadcast, meets the
/// same element of all queries, so that an entry once loaded serves all heads and
/// the softmax needs no sums across lanes. For the weighted sums of latents lanes
/// are latent elements, and what is broadcast is a head's probability.
///
/// A context is cut into spans of whole pages, as its length alone says. Each span
/// is summed up by itself, page by page with a running maximum, then spans are
/// folded together in order: by the task that made them all or, where few rows
/// leave threads without work, by a launch after those that made them one by one.
/// Either way a row's bits depend on its query and its entries.
///
/// A cache of bf16 is multiplied as it is, two elements a lane, by queries and
/// probabilities rounded to bf16; one of codes likewise, once a page is unpacked.

#include "codegen/Cpu/AttentionCommon.h"
#include "codegen/Cpu/Emitters.h"
#include "codegen/Cpu/Math.h"

#include "runtime/KernelAbi.h"

#include <limits>
#include <optional>

namespace moec::cpu {

namespace {

constexpr int64_t pageTokens = MOE_PAGE_TOKENS;
constexpr int64_t block = MlaAttentionSpec::headBlock;
/// Words of queries that are multiplied with a page's entries at once: 6 KiB.
constexpr int64_t wordsAtOnce = 96;
static_assert(block == kLanes, "a lane is a head");

/// What attention over a part of a context comes to, for up to 16 heads side by side: f32 [maximum][16], [sum][16],
/// then [latent vector][head][16 elements], weighted sums by exp(score - maximum).
struct Part {
  Ptr memory;
  Val heads;          ///< that have sums here
  Val firstHead = {}; ///< of those that are meant; null: the first

  Ptr maximum() const { return memory; }
  Ptr sum() const { return memory + block; }
  Ptr latents(Val vector) const {
    Ptr sums = memory + 2 * block + vector * heads * kLanes;
    return firstHead.value ? sums + firstHead * kLanes : sums;
  }
};

/// How the context of a token is cut.
struct Spans {
  Val pages, pagesOfSpan, count;

  Spans(KernelBuilder &b, Val seen) {
    pages = (seen + (pageTokens - 1)) / pageTokens;
    pagesOfSpan = b.max((pages + (MlaAttentionSpec::maxSpans - 1)) / MlaAttentionSpec::maxSpans,
                        b.cI64(MlaAttentionSpec::leastSpanPages));
    count = (pages + (pagesOfSpan - 1)) / pagesOfSpan;
  }
};

/// Head `h` of a vector with a lane for each.
Val ofHead(KernelBuilder &b, Ptr lanes, int64_t h) { return b.splat((lanes + h).load()); }

/// The part of no entries: `heads` heads.
void clear(KernelBuilder &b, Part part, Val vectors, int64_t heads) {
  Val zero = b.constant(b.vec(b.f32), 0.0);
  part.maximum().store(zero.like(-std::numeric_limits<double>::infinity()));
  part.sum().store(zero);
  b.loop(b.cI64(0), vectors, 1, [&](Val vector) {
    for (int64_t h = 0; h < heads; ++h)
      (part.latents(vector) + h * kLanes).store(zero);
  });
}

/// Takes `next` into `total`: `heads` heads, of which the first has lane `firstLane`. `factors` is scratch of two
/// vectors.
void add(KernelBuilder &b, Part total, Part next, Ptr factors, Val vectors, Val firstLane, int64_t heads) {
  Val first = total.maximum().load(kLanes), second = next.maximum().load(kLanes);
  Val maximum = b.max(second, first);
  Val ofTotal = exp(b, first - maximum), ofNext = exp(b, second - maximum);
  factors.store(ofTotal);
  (factors + kLanes).store(ofNext);
  total.maximum().store(maximum);
  total.sum().store(b.fma(total.sum().load(kLanes), ofTotal, next.sum().load(kLanes) * ofNext));
  Ptr lanes = factors + firstLane;
  b.loop(b.cI64(0), vectors, 1, [&](Val vector) {
    for (int64_t h = 0; h < heads; ++h) {
      Ptr at = total.latents(vector) + h * kLanes;
      Val term = (next.latents(vector) + h * kLanes).load(kLanes) * ofHead(b, lanes + kLanes, h);
      at.store(b.fma(at.load(kLanes), ofHead(b, lanes, h), term));
    }
  });
}

/// Writes the latents of `heads` heads, of which the first has lane `firstLane` and its row at `out`.
void finish(KernelBuilder &b, Part total, Ptr factors, Ptr out, int64_t outHead, int64_t latent, Val firstLane,
            int64_t heads) {
  Val sum = total.sum().load(kLanes);
  factors.store(sum.like(1.0) / sum);
  Ptr lanes = factors + firstLane;
  b.vectors(latent, [&](Val element, Val mask) {
    for (int64_t h = 0; h < heads; ++h)
      (out + h * outHead + element)
          .store((total.latents(element / kLanes) + h * kLanes).load(kLanes) * ofHead(b, lanes, h), mask);
  });
}

/// Whether tasks make one span each, for a launch after them.
Val isSplit(KernelBuilder &b, int64_t blocks) { return b.tokens() * blocks <= MlaAttentionSpec::splitRows; }

/// Runs `body` unless the token's run is so long that its rows are not written.
template <class Spec>
void unlessInLongRun(KernelBuilder &b, const Spec &spec, Ptr slots, Val token, llvm::function_ref<void()> body) {
  if (spec.runBelow)
    b.ifThen(runHasAtLeast(b, slots, token, spec.runBelow) ^ b.constant(b.i1, int64_t(1)), body);
  else
    body();
}

class AttentionEmitter {
public:
  AttentionEmitter(KernelBuilder &b, const MlaAttentionSpec &spec, const Tiles &tiles)
      : b(b), spec(spec), math(b, spec.cache), words(math.count(spec.latent + spec.rope)),
        latentVectors((spec.latent + kLanes - 1) / kLanes) {
    tile = powerOfTwoWithin(std::min(tiles.gemmAccumulators, block));
  }

  void emit() {
    q = b.arg(0, b.f32);
    positions = b.arg(1, b.i32);
    slots = b.arg(2, b.i32);
    pageTable = b.arg(3, b.i32);
    cache.emplace(b, 4, spec);
    parts = b.arg(5, b.f32);
    out = b.arg(6, b.f32);
    queries = b.scratch(math.type(), (words + kLanes - 1) / kLanes * kLanes * block);
    scores = b.scratch(b.f32, pageTokens * block);
    probabilities = b.scratch(math.type(), pageTokens / math.elements * block);
    factors = b.scratch(b.f32, 2 * block);
    own = b.scratch(b.f32, spec.partSize());
    whole = b.scratch(b.f32, spec.partSize());
    split = isSplit(b, spec.blocks());
    isWhole = split ^ b.constant(b.i1, int64_t(1));
    b.tasks([&](Val task) {
      Val row = task / MlaAttentionSpec::maxSpans;
      Val token = row / spec.blocks(), which = row % spec.blocks();
      // Where rows are whole tasks the other tasks are empty.
      b.ifThen(split | (task % MlaAttentionSpec::maxSpans == 0), [&] {
        unlessInLongRun(b, spec, slots, token, [&] {
          const int64_t rest = spec.heads % block;
          if (spec.heads >= block)
            b.ifThen((which + 1) * block <= spec.heads, [&] { attend(task, row, token, which * block, block); });
          if (rest)
            b.ifThen(which == spec.blocks() - 1, [&] { attend(task, row, token, which * block, rest); });
        });
      });
    });
  }

private:
  void attend(Val task, Val row, Val token, Val firstHead, int64_t heads) {
    Val seen = b.convert((positions + token).load(), b.i64) + 1;
    Val slot = b.convert((slots + token).load(), b.i64);
    Spans spans(b, seen);
    pages = pageTable + slot * b.pagesPerSlot();
    lastPage = spans.pages - 1;
    // Spans in equal shares, so that neighbouring tasks, which one thread gets, are not all empty.
    Val share = task % MlaAttentionSpec::maxSpans;
    Val begin = b.select(split, share * spans.count / MlaAttentionSpec::maxSpans, b.cI64(0));
    Val end = b.select(split, (share + 1) * spans.count / MlaAttentionSpec::maxSpans, spans.count);
    b.ifThen(begin < end, [&] {
      // Lanes without a head have the last one's query.
      llvm::SmallVector<Ptr> rows;
      for (int64_t h = 0; h < block; ++h)
        rows.push_back(q + token * spec.qStride + (firstHead + std::min(h, heads - 1)) * spec.qHead);
      math.transposeRows(rows, spec.latent + spec.rope, queries);
      Val firstLane = b.cI64(0), vectors = b.cI64(latentVectors);
      Part total{whole, b.cI64(heads)};
      clear(b, total, vectors, heads);
      b.loop(begin, end, 1, [&](Val span) {
        Ptr place = parts + (row * MlaAttentionSpec::maxSpans + span) * spec.partSize();
        Part part{{b.select(split, place.base, own.base), b.f32}, b.cI64(heads)};
        Val first = span * spans.pagesOfSpan;
        attendSpan(part, first, b.min(first + spans.pagesOfSpan, spans.pages), seen, heads);
        b.ifThen(isWhole, [&] { add(b, total, part, factors, vectors, firstLane, heads); });
      });
      b.ifThen(isWhole, [&] {
        Ptr rows = out + token * spec.outStride + firstHead * spec.outHead;
        finish(b, total, factors, rows, spec.outHead, spec.latent, firstLane, heads);
      });
    });
  }

  //===--------------------------------------------------------------------===//
  // A span
  //===--------------------------------------------------------------------===//

  void attendSpan(Part part, Val firstPage, Val endPage, Val seen, int64_t heads) {
    clear(b, part, b.cI64(latentVectors), heads);
    Vals state = b.loop(firstPage, endPage, 1, {part.maximum().load(kLanes), part.sum().load(kLanes)},
                        [&](Val page, llvm::ArrayRef<Val> carried) -> Vals {
                          Val entries = b.min(seen - page * pageTokens, b.cI64(pageTokens));
                          Ptr rows = cache->read(idOf(page), entries);
                          score(rows, entries);
                          AttentionWords::Softmax next =
                              math.softmax(scores, entries, b.splat(b.convert(entries, b.i32)), spec.scale, carried[0],
                                           carried[1], probabilities);
                          factors.store(next.factor);
                          upcoming = cache->stored(idOf(b.min(page + 1, lastPage)));
                          addLatents(part, rows, entries, heads);
                          return {next.maximum, next.sum};
                        });
    part.maximum().store(state[0]);
    part.sum().store(state[1]);
  }

  Val idOf(Val page) { return b.convert((pages + page).load(), b.i64); }

  /// Some words of all entries at once, so that these words of the queries stay in the nearest cache.
  void score(Ptr page, Val entries) {
    for (int64_t from = 0; from < words; from += wordsAtOnce)
      math.addScores({.keys = math.words(page) + from,
                      .keyStride = spec.width / math.elements,
                      .queries = queries + from * block,
                      .queryStride = 0,
                      .words = std::min(wordsAtOnce, words - from)},
                     entries, tile, /*vectors=*/1, scores, /*begins=*/from == 0);
  }

  /// part = part * factors + sum_j p_j * latent j, one chain over j (in pairs, the second of two first, for bf16).
  void addLatents(Part part, Ptr page, Val entries, int64_t heads) {
    // Pages lie anywhere, and no prefetcher of the machine's foresees the next one: each vector asks for a share of it.
    const int64_t lines = cache->pageBytes() / 64, share = (lines + latentVectors - 1) / latentVectors;
    b.loop(b.cI64(0), b.cI64(latentVectors), 1, [&](Val vector) {
      Ptr ahead = Ptr{upcoming.base, b.i8} + vector * (share * 64);
      b.loop(b.cI64(0), b.cI64(share), 1, [&](Val line) { b.prefetch(ahead + line * 64); });
      for (int64_t from = 0; from < heads; from += tile)
        addLatents(part.latents(vector), page + vector * kLanes, entries, from, std::min(tile, heads - from));
    });
  }

  /// The same for `count` heads from `from` on, whose sums lie at `sums` + 16 * head, and a vector of columns.
  void addLatents(Ptr sums, Ptr columns, Val entries, int64_t from, int64_t count) {
    Vals totals;
    for (int64_t h = from; h < from + count; ++h)
      totals.push_back((sums + h * kLanes).load(kLanes) * ofHead(b, factors, h));
    totals = b.loop(b.cI64(0), entries, math.elements, totals, [&](Val j, llvm::ArrayRef<Val> carried) {
      Val lanes = wordsOfEntry(columns, j, entries);
      Vals next;
      for (int64_t i = 0; i < count; ++i) {
        Val p = b.splat((probabilities + j / math.elements * block + (from + i)).load());
        next.push_back(math.dot(carried[i], lanes, p));
      }
      return next;
    });
    for (int64_t i = 0; i < count; ++i)
      (sums + (from + i) * kLanes).store(totals[i]);
  }

  /// A vector of words of entry j or, for bf16, of j and the one after it. The last one stands for one after it, which
  /// has probability 0 but may be no number.
  Val wordsOfEntry(Ptr columns, Val j, Val entries) {
    Val first = (columns + j * spec.width).load(kLanes);
    if (!math.halves)
      return first;
    Val second = (columns + b.min(j + 1, entries - 1) * spec.width).load(kLanes);
    llvm::SmallVector<int64_t> lanes;
    for (int64_t l = 0; l < kLanes; ++l)
      lanes.append({l, kLanes + l});
    return b.bitcast(b.shuffle(first, second, lanes), b.vec(b.i32));
  }

  KernelBuilder &b;
  const MlaAttentionSpec &spec;
  AttentionWords math;
  int64_t words; ///< of an entry, or a query
  int64_t latentVectors;
  int64_t tile; ///< accumulators in registers: entries or heads at once
  Ptr q, positions, slots, pageTable, parts, out;
  std::optional<CachePages> cache;
  Ptr queries, scores, probabilities; ///< [words][heads], [page tokens][heads], [words of page tokens][heads]
  Ptr factors;                        ///< [2][heads]
  Ptr own, whole;                     ///< parts
  Val split, isWhole;
  Ptr pages;    ///< of the task's slot
  Ptr upcoming; ///< the page after the one that is attended to
  Val lastPage;
};

class CombineEmitter {
public:
  CombineEmitter(KernelBuilder &b, const MlaCombineSpec &spec) : b(b), spec(spec) {}

  void emit() {
    parts = b.arg(0, b.f32);
    positions = b.arg(1, b.i32);
    slots = b.arg(2, b.i32);
    out = b.arg(3, b.f32);
    factors = b.scratch(b.f32, 2 * block);
    whole = b.scratch(b.f32, MlaAttentionSpec{1, spec.latent}.partSize());
    b.ifThen(isSplit(b, spec.blocks()), [&] {
      b.tasks([&](Val task) {
        Val token = task / spec.heads, head = task % spec.heads;
        unlessInLongRun(b, spec, slots, token, [&] { combine(token, head); });
      });
    });
  }

private:
  void combine(Val token, Val head) {
    Val which = head / block, lane = head % block, row = token * spec.blocks() + which;
    Val heads = b.min(b.cI64(spec.heads) - which * block, b.cI64(block));
    Val vectors = b.cI64((spec.latent + kLanes - 1) / kLanes);
    Spans spans(b, b.convert((positions + token).load(), b.i64) + 1);
    Part total{whole, b.cI64(1)};
    clear(b, total, vectors, /*heads=*/1);
    b.loop(b.cI64(0), spans.count, 1, [&](Val span) {
      Part next{parts + (row * MlaAttentionSpec::maxSpans + span) * spec.partSize(), heads, lane};
      add(b, total, next, factors, vectors, lane, /*heads=*/1);
    });
    finish(b, total, factors, out + token * spec.outStride + head * spec.outHead, spec.outHead, spec.latent, lane,
           /*heads=*/1);
  }

  KernelBuilder &b;
  const MlaCombineSpec &spec;
  Ptr parts, positions, slots, out;
  Ptr factors, whole;
};

} // namespace

void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaAttentionSpec &spec, const Tiles &tiles) {
  b.kernel(symbol, [&] { AttentionEmitter(b, spec, tiles).emit(); });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaCombineSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] { CombineEmitter(b, spec).emit(); });
}

} // namespace moec::cpu
