// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Latent attention in expanded form. A task takes one head and a block of
/// tokens; for each run of one sequence in it and each page, the head's keys and
/// values are multiplied out of the latents once, then every token that sees the
/// page is scored against them, a lane for each. For the weighted sums of values
/// lanes are a value's elements, and what is broadcast is a token's probability.
/// Each sum is one chain in a fixed order, and pages come from 0 upward, so a
/// row's bits depend on its query and entries alone.

#include "codegen/Cpu/AttentionCommon.h"
#include "codegen/Cpu/Emitters.h"
#include "codegen/Cpu/PanelProducts.h"
#include "codegen/Cpu/Rounding.h"

#include "runtime/KernelAbi.h"

#include <limits>
#include <optional>

namespace moec::cpu {

namespace {

class ExpandedAttentionEmitter {
public:
  ExpandedAttentionEmitter(KernelBuilder &b, const MlaExpandedSpec &spec, const Tiles &tiles)
      : b(b), spec(spec), math(b, spec.cache), pairs(math.halves && spec.weight == DType::BF16),
        keyPanels(panelsOf(spec.nope)), valuePanels(panelsOf(spec.value)), valueWidth(valuePanels * kPanelWidth),
        nopeWords(math.count(spec.nope)), ropeWords(math.count(spec.rope)),
        keyWords(math.count(keyPanels * kPanelWidth) + ropeWords) {
    // Tiles of entries divide a page: none reaches into the next one, which may not be there.
    const int64_t rows = pairs ? tiles.pairRows : std::min(tiles.gemmRows, tiles.gemmAccumulators);
    const int64_t rowsWide = pairs ? tiles.pairRowsWide : tiles.gemmAccumulators / panelVectors;
    expandRows = powerOfTwoWithin(rows);
    expandVectors = expandRows <= rowsWide ? panelVectors : 1;
    tokenVectors = tiles.gemmAccumulators >= 16 ? 2 : 1;
    keyTile = powerOfTwoWithin(tiles.gemmAccumulators / tokenVectors);
    valueVectors = tiles.valueVectors;
    valueRows = powerOfTwoWithin(tiles.gemmAccumulators / valueVectors);
    rowVectors = tiles.gemmAccumulators / 2;
  }

  void emit() {
    q = b.arg(0, b.f32);
    ropeQ = b.arg(1, b.f32);
    positions = b.arg(2, b.i32);
    slots = b.arg(3, b.i32);
    pageTable = b.arg(4, b.i32);
    cache.emplace(b, 5, spec);
    wUk = b.arg(6, b.storage(spec.weight));
    wUv = b.arg(7, b.storage(spec.weight));
    out = b.arg(8, b.f32);
    if (spec.output != DType::F32)
      rounded = b.arg(9, b.storage(spec.output));
    // Groups of lanes may reach over the end of a block's tokens.
    constexpr int64_t tokens = MlaExpandedSpec::tokenBlock + 2 * kLanes;
    queries = b.scratch(math.type(), (tokens / kLanes * (nopeWords + ropeWords) + kLanes) * kLanes);
    keys = b.scratch(math.type(), pageTokens * keyWords);
    values = b.scratch(math.type(), pageTokens / math.elements * valueWidth);
    scores = b.scratch(b.f32, tokenVectors * pageTokens * kLanes);
    probabilities = b.scratch(math.type(), tokenVectors * pageWords() * kLanes);
    factors = b.scratch(b.f32, tokenVectors * kLanes);
    maxima = b.scratch(b.f32, tokens);
    sums = b.scratch(b.f32, tokens);
    counts = b.scratch(b.i32, tokens);
    ends = b.scratch(b.i64, MlaExpandedSpec::tokenBlock);
    b.tasks([&](Val task) {
      head = task % spec.heads;
      first = task / spec.heads * MlaExpandedSpec::tokenBlock;
      Val count = b.min(b.tokens() - first, b.cI64(MlaExpandedSpec::tokenBlock));
      findRuns(count);
      b.loop(first, first + count, 1, {first}, [&](Val token, llvm::ArrayRef<Val> carried) -> Vals {
        Val begins = token == carried[0];
        Val end = (ends + (token - first)).load();
        b.ifThen(begins, [&] {
          if (spec.runFrom > 1)
            b.ifThen(runHasAtLeast(b, slots, token, spec.runFrom), [&] { run(token, end); });
          else
            run(token, end);
        });
        return {b.select(begins, end, carried[0])};
      });
    });
  }

private:
  static constexpr int64_t pageTokens = MOE_PAGE_TOKENS;
  static constexpr int64_t panelVectors = kPanelWidth / kLanes;
  static int64_t panelsOf(int64_t columns) { return (columns + kPanelWidth - 1) / kPanelWidth; }
  int64_t pageWords() const { return pageTokens / math.elements; }

  /// ends[i]: where the run of token first + i ends, inside the block. Filled from the last token.
  void findRuns(Val count) {
    Val last = (slots + (first + count - 1)).load();
    b.loop(b.cI64(0), count, 1, {first + count, last}, [&](Val step, llvm::ArrayRef<Val> carried) -> Vals {
      Val index = count - 1 - step;
      Val slot = (slots + (first + index)).load();
      Val end = b.select(slot == carried[1], carried[0], first + index + 1);
      (ends + index).store(end);
      return {end, slot};
    });
  }

  Val seenBy(Val token) { return b.convert((positions + token).load(), b.i64) + 1; }
  Ptr outRow(Val token) { return out + token * spec.outStride + head * spec.outHead; }

  /// Tokens [begin, end), all of one slot. What is kept for each of them lies at its number in the run.
  void run(Val begin, Val end) {
    runBegin = begin;
    Val length = end - begin;
    Val zero = b.constant(b.vec(b.f32), 0.0);
    prepareLanes(begin, end);
    Vals most = b.loop(b.cI64(0), length, 1, {b.cI64(0)}, [&](Val i, llvm::ArrayRef<Val> carried) -> Vals {
      Val seen = seenBy(begin + i);
      (counts + i).store(b.convert(seen, b.i32));
      b.vectors(spec.value, [&](Val offset, Val mask) { (outRow(begin + i) + offset).store(zero, mask); });
      return {b.max(seen, carried[0])};
    });

    Ptr pages = pageTable + b.convert((slots + begin).load(), b.i64) * b.pagesPerSlot();
    b.loop(b.cI64(0), (most[0] + (pageTokens - 1)) / pageTokens, 1, [&](Val page) {
      Val before = page * pageTokens, count = b.min(most[0] - before, b.cI64(pageTokens));
      expand(cache->read(b.convert((pages + page).load(), b.i64), count), count);
      b.loop(b.cI64(0), length, tokenVectors * kLanes, [&](Val i) { attend(i, length, before); });
    });

    b.loop(b.cI64(0), length, 1, [&](Val i) {
      Val sum = (sums + i).load();
      b.vectors(spec.value, [&](Val offset, Val mask) {
        Ptr at = outRow(begin + i) + offset;
        at.store(at.load(kLanes) / sum, mask);
      });
      if (spec.output != DType::F32)
        round(begin + i);
    });
  }

  void round(Val token) {
    Ptr from = outRow(token), to = rounded + token * spec.roundedStride + head * spec.roundedHead;
    if (spec.output == DType::U8)
      storeRecords(b, from, to, spec.value, QuantizeRowsSpec::group, spec.outputOffset);
    else
      storeBf16(b, from, to, spec.value);
  }

  /// Transposes the queries of a run, and makes lanes that have no token see nothing.
  void prepareLanes(Val begin, Val end) {
    Val vectors = (end - begin + (tokenVectors * kLanes - 1)) / (tokenVectors * kLanes) * tokenVectors;
    b.loop(b.cI64(0), vectors, 1, [&](Val vector) {
      llvm::SmallVector<Ptr> rows, ropeRows;
      for (int64_t l = 0; l < kLanes; ++l) {
        // A lane without a token has the last one's query.
        Val token = b.min(begin + vector * kLanes + l, end - 1);
        rows.push_back(q + token * spec.qStride + head * spec.qHead);
        ropeRows.push_back(ropeQ + token * spec.ropeStride + head * spec.ropeHead);
      }
      Ptr to = queriesOf(vector);
      math.transposeRows(rows, spec.nope, to);
      math.transposeRows(ropeRows, spec.rope, to + nopeWords * kLanes);
      Val none = b.constant(b.vec(b.f32), 0.0);
      (maxima + vector * kLanes).store(none.like(-std::numeric_limits<double>::infinity()));
      (sums + vector * kLanes).store(none);
      (counts + vector * kLanes).store(b.constant(b.vec(b.i32), int64_t(0)));
    });
  }

  Ptr queriesOf(Val vector) { return queries + vector * ((nopeWords + ropeWords) * kLanes); }

  //===--------------------------------------------------------------------===//
  // Keys and values of a page
  //===--------------------------------------------------------------------===//

  /// Keys and values of the page's first `count` entries, the rope part of a key after the other.
  void expand(Ptr page, Val count) {
    b.loop(b.cI64(0), b.cI64(keyPanels), 1, [&](Val panel) {
      multiply(page, count, wUk + (head * keyPanels + panel) * (spec.latent * kPanelWidth),
               [&](Val j, int64_t column, llvm::ArrayRef<Vals> rows) {
                 for (auto [m, vectors] : llvm::enumerate(rows))
                   for (auto [v, lanes] : llvm::enumerate(vectors))
                     (elementsOfKey(j + m) + panel * kPanelWidth + column + v * kLanes).store(math.narrowed(lanes));
               });
    });
    b.loop(b.cI64(0), b.cI64(valuePanels), 1, [&](Val panel) {
      multiply(page, count, wUv + (head * valuePanels + panel) * (spec.latent * kPanelWidth),
               [&](Val j, int64_t column, llvm::ArrayRef<Vals> rows) {
                 Ptr to = values + j / math.elements * valueWidth + panel * kPanelWidth + column;
                 for (size_t m = 0; m < rows.size(); m += math.elements)
                   for (auto [v, lanes] : llvm::enumerate(rows[m]))
                     (to + m / math.elements * valueWidth + v * kLanes)
                         .store(math.paired(lanes, rows[m + math.elements - 1][v]));
               });
    });
    if (spec.rope)
      b.loop(b.cI64(0), count, 1, [&](Val j) { copyRope(page + j * spec.width + spec.latent, j); });
  }

  Ptr elementsOfKey(Val j) { return math.single(keys + j * keyWords); }

  void copyRope(Ptr from, Val j) {
    Ptr to = elementsOfKey(j) + keyPanels * kPanelWidth;
    int64_t whole = spec.rope / kLanes * kLanes;
    if (whole)
      b.loop(b.cI64(0), b.cI64(whole), kLanes, [&](Val i) { (to + i).store((from + i).load(kLanes)); });
    for (int64_t i = whole; i < spec.rope; ++i)
      (to + i).store((from + i).load());
    if (spec.rope < ropeWords * math.elements)
      (to + spec.rope).store(b.constant(b.storage(spec.cache), int64_t(0)));
  }

  /// What sum_c latent_j[c] * panel[c][n] comes to for entries up to `count` and on to a whole tile: calls `use` with
  /// the first of some entries and of some columns, and [entry][vector of columns].
  void multiply(Ptr page, Val count, Ptr panel, llvm::function_ref<void(Val, int64_t, llvm::ArrayRef<Vals>)> use) {
    b.loop(b.cI64(0), count, expandRows, [&](Val j) {
      llvm::SmallVector<Ptr> rows;
      for (int64_t m = 0; m < expandRows; ++m)
        rows.push_back(page + (j + m) * spec.width);
      for (int64_t first = 0; first < panelVectors; first += expandVectors) {
        PanelVectors weights{panel, spec.weight, first, expandVectors, /*prefetched=*/false};
        const Vals zeros(expandRows * expandVectors, b.constant(b.vec(b.f32), 0.0));
        Vals products = pairs ? pairProducts(b, rows, weights, spec.latent, zeros)
                              : columnProducts(b, rows, spec.cache, weights, spec.latent);
        llvm::SmallVector<Vals> ofRows;
        for (int64_t m = 0; m < expandRows; ++m)
          ofRows.push_back(Vals(llvm::ArrayRef(products).slice(m * expandVectors, expandVectors)));
        use(j, first * kLanes, ofRows);
      }
    });
  }

  //===--------------------------------------------------------------------===//
  // Tokens against a page
  //===--------------------------------------------------------------------===//

  /// The tokens of `tokenVectors` vectors, from number `i` of the run's `length` on, against the page whose first
  /// entry has position `before`.
  void attend(Val i, Val length, Val before) {
    Vals seen;
    for (int64_t v = 0; v < tokenVectors; ++v) {
      Val whole = b.constant(b.vec(b.i32), pageTokens);
      Val count = (counts + i + v * kLanes).load(kLanes) - b.splat(b.convert(before, b.i32));
      seen.push_back(b.min(count, whole));
    }
    Val most = seen[0];
    for (Val count : llvm::drop_begin(seen))
      most = b.max(most, count);
    most = b.convert(b.maxIntLanes(most), b.i64);
    b.ifThen(most > 0, [&] {
      AttentionWords::Products nope{.keys = keys,
                                    .keyStride = keyWords,
                                    .queries = queriesOf(i / kLanes),
                                    .queryStride = (nopeWords + ropeWords) * kLanes,
                                    .words = nopeWords};
      math.addScores(nope, most, keyTile, tokenVectors, scores, /*begins=*/true);
      if (spec.rope) {
        AttentionWords::Products rope = nope;
        rope.keys = nope.keys + (keyWords - ropeWords);
        rope.queries = nope.queries + nopeWords * kLanes;
        rope.words = ropeWords;
        math.addScores(rope, most, keyTile, tokenVectors, scores, /*begins=*/false);
      }
      for (int64_t v = 0; v < tokenVectors; ++v) {
        Ptr maximum = maxima + i + v * kLanes, sum = sums + i + v * kLanes;
        AttentionWords::Softmax next =
            math.softmax(scores + v * (pageTokens * kLanes), most, seen[v], spec.scale, maximum.load(kLanes),
                         sum.load(kLanes), probabilities + v * (pageWords() * kLanes));
        maximum.store(next.maximum);
        sum.store(next.sum);
        (factors + v * kLanes).store(next.factor);
      }
      Val end = b.min(length - i, b.cI64(tokenVectors * kLanes)), whole = end / valueRows * valueRows;
      b.loop(b.cI64(0), whole, valueRows, [&](Val lane) { addValues(i, lane, valueRows, before); });
      b.loop(whole, end, 1, [&](Val lane) { addValues(i, lane, 1, before); });
    });
  }

  /// The page's values for `rows` tokens, from lane `lane` of those at number `i` of the run on.
  void addValues(Val i, Val lane, int64_t rows, Val before) {
    Vals entries;
    for (int64_t m = 0; m < rows; ++m)
      entries.push_back(b.min(b.convert((counts + i + lane + m).load(), b.i64) - before, b.cI64(pageTokens)));
    Val least = entries[0];
    for (Val count : llvm::drop_begin(entries))
      least = b.min(least, count);
    Val token = runBegin + i + lane;
    b.ifThen(least == pageTokens, [&] { addWhole(token, lane, rows); });
    // Where a token sees part of the page it goes alone: what it does not see may be no number.
    b.ifThen(least < pageTokens, [&] {
      for (int64_t m = 0; m < rows; ++m)
        b.ifThen(entries[m] > 0, [&] { addPart(token + m, lane + m, entries[m]); });
    });
  }

  /// The probability word of entries `word` of the page for the token in a lane.
  Val probability(Val word, Val lane) {
    return b.splat((probabilities + lane / kLanes * (pageWords() * kLanes) + lane % kLanes + word * kLanes).load());
  }

  void addWhole(Val token, Val lane, int64_t rows) {
    addColumns(token, lane, rows, valueVectors, b.cI64(pageWords()), [&](Val, Ptr at) { return at.load(kLanes); });
  }

  void addPart(Val token, Val lane, Val entries) {
    addColumns(token, lane, 1, rowVectors, (entries + (math.elements - 1)) / math.elements, [&](Val word, Ptr at) {
      Val value = at.load(kLanes);
      if (!math.halves)
        return value;
      // Of the last word the second entry may be one that the token does not see.
      return value & b.splat(b.select(word * 2 + 1 < entries, b.constant(b.i32, int64_t(-1)),
                                      b.constant(b.i32, int64_t(0xFFFF))));
    });
  }

  /// out = out * factor + sum_j p_j * value_j, one chain over the first `words` words of j, for `rows` tokens and
  /// `width` vectors of values at once. `load` gives 16 lanes of word j.
  void addColumns(Val token, Val lane, int64_t rows, int64_t width, Val words,
                  llvm::function_ref<Val(Val word, Ptr at)> load) {
    auto put = [&](Val offset, int64_t vectors, int64_t tail) {
      auto at = [&](int64_t m, int64_t v) { return outRow(token + m) + offset + v * kLanes; };
      Vals totals;
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t v = 0; v < vectors; ++v)
          totals.push_back(at(m, v).load(kLanes) * (factors + lane + m).load());
      totals = b.loop(b.cI64(0), words, 1, totals, [&](Val j, llvm::ArrayRef<Val> carried) {
        Vals value, next;
        for (int64_t v = 0; v < vectors; ++v)
          value.push_back(load(j, values + j * valueWidth + offset + v * kLanes));
        for (int64_t m = 0; m < rows; ++m) {
          Val p = probability(j, lane + m);
          for (int64_t v = 0; v < vectors; ++v)
            next.push_back(math.dot(carried[m * vectors + v], p, value[v]));
        }
        return next;
      });
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t v = 0; v < vectors; ++v)
          at(m, v).store(totals[m * vectors + v], tail && v == vectors - 1 ? b.firstLanes(tail) : Val());
    };
    int64_t whole = spec.value / kLanes / width * width;
    if (whole)
      b.loop(b.cI64(0), b.cI64(whole * kLanes), width * kLanes, [&](Val offset) { put(offset, width, 0); });
    if (whole * kLanes < spec.value)
      put(b.cI64(whole * kLanes), (spec.value - whole * kLanes + kLanes - 1) / kLanes, spec.value % kLanes);
  }

  KernelBuilder &b;
  const MlaExpandedSpec &spec;
  AttentionWords math;
  bool pairs; ///< whether latents and weights are multiplied as bf16
  int64_t keyPanels, valuePanels, valueWidth;
  int64_t nopeWords, ropeWords;
  int64_t keyWords;                  ///< of a key in memory: whole panels, then the rope part
  int64_t expandRows, expandVectors; ///< entries and vectors of a panel that are multiplied out at once
  int64_t keyTile, tokenVectors;     ///< keys and vectors of tokens that are scored at once
  int64_t valueRows, valueVectors;   ///< tokens and vectors of values that are summed up at once
  int64_t rowVectors;                ///< vectors of a token that goes alone
  Ptr q, ropeQ, positions, slots, pageTable, wUk, wUv, out, rounded;
  std::optional<CachePages> cache;
  Ptr queries;               ///< [vector of tokens][word][token]
  Ptr keys, values;          ///< [page tokens][keyWords], [words of page tokens][valueWidth]
  Ptr scores, probabilities; ///< [vector][page tokens][token], [vector][words of page tokens][token]
  Ptr factors;               ///< [vector][token]
  Ptr maxima, sums, counts;  ///< of each token of the run; counts: entries it sees
  Ptr ends;                  ///< of each token of the block
  Val head, first;           ///< of the task
  Val runBegin;
};

} // namespace

void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaExpandedSpec &spec, const Tiles &tiles) {
  b.kernel(symbol, [&] { ExpandedAttentionEmitter(b, spec, tiles).emit(); });
}

} // namespace moec::cpu
