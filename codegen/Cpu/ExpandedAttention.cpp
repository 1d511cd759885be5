// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Latent attention in expanded form. A task takes one head and a block of
/// tokens; for each run of one sequence in it and each page, the head's keys and
/// values are multiplied out of the latents once, then every token that sees the
/// page is scored against them. Each sum is one chain in a fixed order, and pages
/// come from 0 upward, so a row's bits depend on its query and entries alone.

#include "codegen/Cpu/AttentionCommon.h"
#include "codegen/Cpu/Emitters.h"
#include "codegen/Cpu/Math.h"

#include "runtime/KernelAbi.h"

#include <limits>

namespace moec::cpu {

namespace {

/// The running softmax of one row.
struct Softmax {
  Val maximum, sum;
  Val rescale; ///< what the sums of earlier pages are multiplied by
};

/// Folds the page's dot products `row` f32[page tokens], of which the first `entries` (at least 1) count, into the
/// softmax so far and replaces them by exp(scale * dot - maximum), 0 where they do not count.
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

class ExpandedAttentionEmitter {
public:
  ExpandedAttentionEmitter(KernelBuilder &b, const MlaExpandedSpec &spec, const Tiles &tiles)
      : b(b), spec(spec), pageVectors(std::min(tiles.latentVectors, pageTokens / kLanes)),
        tileRows(tiles.gemmAccumulators / pageVectors), rowVectors(tiles.gemmAccumulators / 2),
        keyPanels(panelsOf(spec.nope)), valuePanels(panelsOf(spec.value)), valueWidth(valuePanels * kPanelWidth) {
    // Tiles of entries divide a page: none reaches into the next one, which may not be there.
    expandRows = 1;
    while (expandRows * 2 <= std::min(tiles.gemmRows, tiles.gemmAccumulators))
      expandRows *= 2;
    expandVectors = expandRows * panelVectors <= tiles.gemmAccumulators ? panelVectors : 1;
  }

  void emit() {
    q = b.arg(0, b.f32);
    ropeQ = b.arg(1, b.f32);
    positions = b.arg(2, b.i32);
    slots = b.arg(3, b.i32);
    pageTable = b.arg(4, b.i32);
    cache = b.arg(5, b.storage(spec.cache));
    wUk = b.arg(6, b.storage(spec.weight));
    wUv = b.arg(7, b.storage(spec.weight));
    out = b.arg(8, b.f32);
    keys = b.scratch(b.f32, (keyPanels * kPanelWidth + spec.rope) * pageTokens);
    values = b.scratch(b.f32, pageTokens * valueWidth);
    panelKeys = b.scratch(b.f32, pageTokens * kPanelWidth);
    scores = b.scratch(b.f32, tileRows * pageTokens);
    rescales = b.scratch(b.f32, tileRows);
    maxima = b.scratch(b.f32, MlaExpandedSpec::tokenBlock);
    sums = b.scratch(b.f32, MlaExpandedSpec::tokenBlock);
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

  /// Tokens [begin, end), all of one slot.
  void run(Val begin, Val end) {
    Val zero = b.constant(b.vec(b.f32), 0.0);
    Vals most = b.loop(begin, end, 1, {b.cI64(0)}, [&](Val token, llvm::ArrayRef<Val> carried) -> Vals {
      (maxima + (token - first)).store(b.cF32(-std::numeric_limits<double>::infinity()));
      (sums + (token - first)).store(b.cF32(0));
      b.vectors(spec.value, [&](Val offset, Val mask) { store(outRow(token) + offset, zero, mask); });
      return {b.max(seenBy(token), carried[0])};
    });

    Ptr pages = pageTable + b.convert((slots + begin).load(), b.i64) * b.pagesPerSlot();
    b.loop(b.cI64(0), (most[0] + (pageTokens - 1)) / pageTokens, 1, [&](Val page) {
      Ptr entries = cache + b.convert((pages + page).load(), b.i64) * (pageTokens * spec.width);
      Val before = page * pageTokens;
      expand(entries, b.min(most[0] - before, b.cI64(pageTokens)));
      Val whole = begin + (end - begin) / tileRows * tileRows;
      b.loop(begin, whole, tileRows, [&](Val token) { tile(token, tileRows, before); });
      b.loop(whole, end, 1, [&](Val token) { tile(token, 1, before); });
    });

    b.loop(begin, end, 1, [&](Val token) {
      Val sum = (sums + (token - first)).load();
      b.vectors(spec.value, [&](Val offset, Val mask) {
        Ptr at = outRow(token) + offset;
        store(at, at.load(kLanes) / sum, mask);
      });
    });
  }

  void store(Ptr at, Val value, Val mask) { mask.value ? at.store(value, mask) : at.store(value); }

  //===--------------------------------------------------------------------===//
  // Keys and values of a page
  //===--------------------------------------------------------------------===//

  /// keys[n][j] and values[j][v] of the page's first `count` entries; rows of the rope part follow the keys.
  void expand(Ptr page, Val count) {
    b.loop(b.cI64(0), b.cI64(keyPanels), 1, [&](Val panel) {
      multiply(page, count, wUk + (head * keyPanels + panel) * (spec.latent * kPanelWidth), panelKeys, kPanelWidth);
      transpose(panelKeys, DType::F32, kPanelWidth, keys + panel * (kPanelWidth * pageTokens), kPanelWidth);
    });
    transpose(page + spec.latent, spec.cache, spec.width, keys + keyPanels * kPanelWidth * pageTokens, spec.rope);
    b.loop(b.cI64(0), b.cI64(valuePanels), 1, [&](Val panel) {
      multiply(page, count, wUv + (head * valuePanels + panel) * (spec.latent * kPanelWidth),
               values + panel * kPanelWidth, valueWidth);
    });
  }

  /// to[j][n] = sum_c latent_j[c] * panel[c][n], c ascending. Entries up to a whole tile are made too.
  void multiply(Ptr page, Val count, Ptr panel, Ptr to, int64_t toStride) {
    b.loop(b.cI64(0), count, expandRows, [&](Val j) {
      b.loop(b.cI64(0), b.cI64(kPanelWidth), expandVectors * kLanes, [&](Val column) {
        Vals totals(expandRows * expandVectors, b.constant(b.vec(b.f32), 0.0));
        totals = b.loop(b.cI64(0), b.cI64(spec.latent), 1, totals, [&](Val c, llvm::ArrayRef<Val> carried) {
          Vals w, next;
          for (int64_t v = 0; v < expandVectors; ++v)
            w.push_back(b.loadAsF32(panel + c * kPanelWidth + column + v * kLanes, spec.weight));
          for (int64_t m = 0; m < expandRows; ++m) {
            Val latent = b.splat(b.loadOneAsF32(page + (j + m) * spec.width + c, spec.cache));
            for (int64_t v = 0; v < expandVectors; ++v)
              next.push_back(b.fma(latent, w[v], carried[m * expandVectors + v]));
          }
          return next;
        });
        for (int64_t m = 0; m < expandRows; ++m)
          for (int64_t v = 0; v < expandVectors; ++v)
            (to + (j + m) * toStride + column + v * kLanes).store(totals[m * expandVectors + v]);
      });
    });
  }

  /// to[i][j] = from[j][i] for a whole page of j.
  void transpose(Ptr from, DType stored, int64_t stride, Ptr to, int64_t rows) {
    b.loop(b.cI64(0), b.cI64(rows), 1, [&](Val i) {
      b.loop(b.cI64(0), b.cI64(pageTokens), 1,
             [&](Val j) { (to + i * pageTokens + j).store(b.loadOneAsF32(from + j * stride + i, stored)); });
    });
  }

  //===--------------------------------------------------------------------===//
  // Tokens against a page
  //===--------------------------------------------------------------------===//

  /// `rows` tokens from `token` on against the page whose first entry has position `before`.
  void tile(Val token, int64_t rows, Val before) {
    Vals entries;
    for (int64_t m = 0; m < rows; ++m)
      entries.push_back(b.min(seenBy(token + m) - before, b.cI64(pageTokens)));
    Val most = entries[0], least = entries[0];
    for (Val count : llvm::drop_begin(entries)) {
      most = b.max(most, count);
      least = b.min(least, count);
    }
    b.ifThen(most > 0, [&] {
      score(token, rows);
      for (int64_t m = 0; m < rows; ++m)
        b.ifThen(entries[m] > 0, [&] {
          Ptr maximum = maxima + (token + m - first), sum = sums + (token + m - first);
          Softmax next = foldPage(b, scores + m * pageTokens, entries[m], spec.scale, maximum.load(), sum.load());
          maximum.store(next.maximum);
          sum.store(next.sum);
          (rescales + m).store(next.rescale);
        });
      // Where a token sees part of the page it goes alone: what it does not see may be no number.
      b.ifThen(least == pageTokens, [&] { addValues(token, 0, rows, b.cI64(pageTokens)); });
      b.ifThen(least < pageTokens, [&] {
        for (int64_t m = 0; m < rows; ++m)
          b.ifThen(entries[m] > 0, [&] { addValues(token + m, m, 1, entries[m]); });
      });
    });
  }

  /// scores[m][j] = q . key_j, then rope_q . rope key_j, in order. All of the page is scored; the caller masks.
  void score(Val token, int64_t rows) {
    b.loop(b.cI64(0), b.cI64(pageTokens), pageVectors * kLanes, [&](Val column) {
      Vals dots(rows * pageVectors, b.constant(b.vec(b.f32), 0.0));
      auto addProducts = [&](Ptr query, int64_t stride, Ptr with, int64_t count) {
        dots = b.loop(b.cI64(0), b.cI64(count), 1, dots, [&](Val n, llvm::ArrayRef<Val> carried) {
          Vals key, next;
          for (int64_t v = 0; v < pageVectors; ++v)
            key.push_back((with + n * pageTokens + column + v * kLanes).load(kLanes));
          for (int64_t m = 0; m < rows; ++m) {
            Val value = b.splat((query + m * stride + n).load());
            for (int64_t v = 0; v < pageVectors; ++v)
              next.push_back(b.fma(value, key[v], carried[m * pageVectors + v]));
          }
          return next;
        });
      };
      addProducts(q + token * spec.qStride + head * spec.qHead, spec.qStride, keys, spec.nope);
      addProducts(ropeQ + token * spec.ropeStride + head * spec.ropeHead, spec.ropeStride,
                  keys + keyPanels * kPanelWidth * pageTokens, spec.rope);
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t v = 0; v < pageVectors; ++v)
          (scores + m * pageTokens + column + v * kLanes).store(dots[m * pageVectors + v]);
    });
  }

  /// out = out * rescale + sum_j p_j * value_j, j ascending, for `rows` tokens from row `m` of the tile on.
  void addValues(Val token, int64_t m, int64_t rows, Val entries) {
    auto columns = [&](Val offset, int64_t vectors) {
      Vals totals;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t v = 0; v < vectors; ++v)
          totals.push_back((outRow(token + i) + offset + v * kLanes).load(kLanes) * (rescales + (m + i)).load());
      totals = b.loop(b.cI64(0), entries, 1, totals, [&](Val j, llvm::ArrayRef<Val> carried) {
        Vals value, next;
        for (int64_t v = 0; v < vectors; ++v)
          value.push_back((values + j * valueWidth + offset + v * kLanes).load(kLanes));
        for (int64_t i = 0; i < rows; ++i) {
          Val p = b.splat((scores + (m + i) * pageTokens + j).load());
          for (int64_t v = 0; v < vectors; ++v)
            next.push_back(b.fma(p, value[v], carried[i * vectors + v]));
        }
        return next;
      });
      return totals;
    };
    int64_t width = rows == 1 ? rowVectors : pageVectors;
    int64_t whole = spec.value / kLanes / width * width;
    auto put = [&](Val offset, int64_t vectors, int64_t tail) {
      Vals totals = columns(offset, vectors);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t v = 0; v < vectors; ++v)
          store(outRow(token + i) + offset + v * kLanes, totals[i * vectors + v],
                tail && v == vectors - 1 ? b.firstLanes(tail) : Val());
    };
    if (whole)
      b.loop(b.cI64(0), b.cI64(whole * kLanes), width * kLanes, [&](Val offset) { put(offset, width, 0); });
    if (whole * kLanes < spec.value)
      put(b.cI64(whole * kLanes), (spec.value - whole * kLanes + kLanes - 1) / kLanes, spec.value % kLanes);
  }

  KernelBuilder &b;
  const MlaExpandedSpec &spec;
  int64_t pageVectors, tileRows; ///< registers of a tile: `tileRows` tokens by `pageVectors` vectors
  int64_t rowVectors;            ///< vectors of a token that goes alone
  int64_t expandRows, expandVectors;
  int64_t keyPanels, valuePanels, valueWidth;
  Ptr q, ropeQ, positions, slots, pageTable, cache, wUk, wUv, out;
  Ptr keys, values;       ///< [keys, then rope][page tokens], [page tokens][valueWidth]
  Ptr panelKeys;          ///< [page tokens][kPanelWidth]
  Ptr scores, rescales;   ///< [tileRows][page tokens], [tileRows]
  Ptr maxima, sums, ends; ///< of each token of the block
  Val head, first;        ///< of the task
};

} // namespace

void emit(KernelBuilder &b, llvm::StringRef symbol, const MlaExpandedSpec &spec, const Tiles &tiles) {
  b.kernel(symbol, [&] { ExpandedAttentionEmitter(b, spec, tiles).emit(); });
}

} // namespace moec::cpu
