// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/PairProducts.h"

#include "codegen/Common/KernelSpec.h"

namespace moec::cpu {

Vals pairProducts(KernelBuilder &b, llvm::ArrayRef<Ptr> inputs, Ptr panel, int64_t k, bool prefetched,
                  llvm::function_ref<Val(Val sums, Val weights, Val row)> dot) {
  constexpr int64_t vectors = kPanelWidth / kLanes;
  static_assert(vectors == 2);
  // Rows k and k + 1 of the panel, element by element; eight lanes of each lie in one part of a register, four of
  // which are the lower and four the upper half of what comes out.
  llvm::SmallVector<int64_t> masks[vectors];
  for (int64_t part = 0; part < kPanelWidth; part += 8)
    for (int64_t i = 0; i < 8; ++i)
      masks[i / 4].append({part + i, kPanelWidth + part + i});
  auto add = [&](Val column, Val second, llvm::function_ref<Val(Ptr)> pairAt, Vals sums) {
    Val first = (panel + column * kPanelWidth).load(kPanelWidth);
    Val weights[vectors];
    for (int64_t half = 0; half < vectors; ++half)
      weights[half] = b.bitcast(b.shuffle(first, second, masks[half]), b.vec(b.i32));
    for (auto [m, input] : llvm::enumerate(inputs)) {
      Val row = b.splat(pairAt(input + column));
      for (int64_t half = 0; half < vectors; ++half)
        sums[vectors * m + half] = dot(sums[vectors * m + half], weights[half], row);
    }
    return sums;
  };
  Vals zeros(vectors * inputs.size(), b.constant(b.vec(b.f32), 0.0));
  Vals sums = b.loop(b.cI64(0), b.cI64(k / 2 * 2), 2, zeros, [&](Val column, llvm::ArrayRef<Val> carried) {
    if (prefetched)
      b.prefetchPanel(panel + column * kPanelWidth, 2 * kPanelWidth * byteSize(DType::BF16), std::ssize(inputs));
    return add(
        column, (panel + (column + 1) * kPanelWidth).load(kPanelWidth),
        [&](Ptr at) { return Ptr{at.base, b.i32}.load(); }, Vals(carried));
  });
  if (k % 2)
    sums = add(
        b.cI64(k - 1), b.constant(b.vec(b.i16, kPanelWidth), int64_t(0)),
        [&](Ptr at) { return b.zeroExtend(at.load(), b.i32); }, sums);
  // Back to the order of the panel's lanes.
  llvm::SmallVector<int64_t> order[vectors];
  for (int64_t lane = 0; lane < kPanelWidth; ++lane)
    order[lane / kLanes].push_back(lane / 8 * 4 + lane % 4 + (lane % 8 / 4) * kLanes);
  Vals result;
  for (size_t m = 0; m < inputs.size(); ++m)
    for (const auto &lanes : order)
      result.push_back(b.shuffle(sums[vectors * m], sums[vectors * m + 1], lanes));
  return result;
}

} // namespace moec::cpu
