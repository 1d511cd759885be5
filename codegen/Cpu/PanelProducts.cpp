// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/PanelProducts.h"

#include "codegen/Common/KernelSpec.h"

namespace moec::cpu {

namespace {

/// `sums` and what `times(sum, row, v)` adds to each, where `row` is that of an input.
template <class Times> Vals addEach(llvm::ArrayRef<Ptr> inputs, llvm::ArrayRef<Val> sums, int64_t width, Times times) {
  Vals next;
  for (auto [m, row] : llvm::enumerate(inputs)) {
    auto add = times(row);
    for (int64_t v = 0; v < width; ++v)
      next.push_back(add(sums[m * width + v], v));
  }
  return next;
}

/// The vectors of words, each of which holds two columns, from an even `column` on.
Vals pairsAt(const PanelVectors &weights, Val column) {
  Vals words;
  for (int64_t v = 0; v < weights.width; ++v) {
    Ptr at = weights.panel + column * kPanelWidth + (weights.first + v) * (2 * kLanes);
    words.push_back(Ptr{at.base, at.base.builder->i32}.load(kLanes));
  }
  return words;
}

void prefetch(KernelBuilder &b, const PanelVectors &weights, Val column, int64_t columns, size_t rows) {
  if (weights.prefetched && weights.first == 0)
    b.prefetchPanel(weights.panel + column * kPanelWidth, columns * kPanelWidth * byteSize(weights.type),
                    static_cast<int64_t>(rows));
}

} // namespace

Vals columnProducts(KernelBuilder &b, llvm::ArrayRef<Ptr> inputs, DType input, const PanelVectors &weights, Val from,
                    Val to, llvm::ArrayRef<Val> sums) {
  return b.loop(from, to, 1, sums, [&](Val column, llvm::ArrayRef<Val> carried) {
    prefetch(b, weights, column, 1, inputs.size());
    Ptr at = weights.panel + column * kPanelWidth + weights.first * kLanes;
    Vals w;
    for (int64_t v = 0; v < weights.width; ++v)
      w.push_back(b.loadAsF32(at + v * kLanes, weights.type));
    return addEach(inputs, carried, weights.width, [&](Ptr row) {
      Val value = b.splat(b.loadOneAsF32(row + column, input));
      return [&, value](Val sum, int64_t v) { return b.fma(value, w[v], sum); };
    });
  });
}

Vals columnProducts(KernelBuilder &b, llvm::ArrayRef<Ptr> inputs, DType input, const PanelVectors &weights,
                    int64_t columns) {
  const int64_t width = weights.width;
  const Vals zeros(inputs.size() * width, b.constant(b.vec(b.f32), 0.0));
  if (panelColumns(weights.type) == 1)
    return columnProducts(b, inputs, input, weights, b.cI64(0), b.cI64(columns), zeros);
  assert(panelColumns(weights.type) == 2 && weights.type == DType::BF16);
  Vals sums = b.loop(b.cI64(0), b.cI64(columns / 2 * 2), 2, zeros, [&](Val column, llvm::ArrayRef<Val> carried) {
    prefetch(b, weights, column, 2, inputs.size());
    Vals first, second;
    for (Val words : pairsAt(weights, column)) {
      auto [lower, upper] = b.unpairBf16(words);
      first.push_back(lower);
      second.push_back(upper);
    }
    return addEach(inputs, carried, width, [&](Ptr row) {
      Val value = b.splat(b.loadOneAsF32(row + column, input));
      Val next = b.splat(b.loadOneAsF32(row + (column + 1), input));
      return [&, value, next](Val sum, int64_t v) { return b.fma(next, second[v], b.fma(value, first[v], sum)); };
    });
  });
  if (columns % 2) // a last one lies alone, as other types do
    sums = columnProducts(b, inputs, input, weights, b.cI64(columns - 1), b.cI64(columns), sums);
  return sums;
}

Vals pairProducts(KernelBuilder &b, llvm::ArrayRef<Ptr> inputs, const PanelVectors &weights, int64_t columns,
                  llvm::ArrayRef<Val> sums) {
  Vals result = b.loop(b.cI64(0), b.cI64(columns / 2 * 2), 2, sums, [&](Val column, llvm::ArrayRef<Val> carried) {
    prefetch(b, weights, column, 2, inputs.size());
    Vals w = pairsAt(weights, column);
    return addEach(inputs, carried, weights.width, [&](Ptr row) {
      Val pair = b.splat(Ptr{(row + column).base, b.i32}.load());
      return [&, pair](Val sum, int64_t v) { return b.dotBf16(sum, w[v], pair); };
    });
  });
  if (columns % 2 == 0)
    return result;
  Val column = b.cI64(columns - 1);
  return addEach(inputs, result, weights.width, [&](Ptr row) {
    Val single = b.splat(b.zeroExtend((row + column).load(), b.i32));
    return [&, single](Val sum, int64_t v) {
      Ptr at = weights.panel + column * kPanelWidth + (weights.first + v) * kLanes;
      return b.dotBf16(sum, b.zeroExtend(at.load(kLanes), b.i32), single);
    };
  });
}

} // namespace moec::cpu
