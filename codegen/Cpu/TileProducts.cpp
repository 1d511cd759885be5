// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/TileProducts.h"

#include "codegen/Cpu/PanelProducts.h"

#include "llvm/Support/MathExtras.h"

namespace moec::cpu {

static constexpr int64_t kVectors = kPanelWidth / kLanes;
static_assert(kVectors == 2, "four sums, two of rows and two of weights are all registers");

// Numbers of registers.
static constexpr int64_t sumsOf(int64_t part, int64_t vector) { return part * kVectors + vector; }
static constexpr int64_t rowsOf(int64_t part) { return 4 + part; }
static constexpr int64_t weightsOf(int64_t vector) { return 6 + vector; }

void TileProducts::begin() {
  if (!areUsed())
    return;
  for (int64_t height = 1; height <= AmxTiles::mostRows; height *= 2) {
    llvm::SmallVector<AmxTiles::Shape> shapes(AmxTiles::registers, {.rows = height});
    for (int64_t v = 0; v < kVectors; ++v)
      shapes[weightsOf(v)] = {.rows = columns / 2};
    configurations.push_back(amx.configuration(shapes));
  }
  amx.configure(configurations.back()); // a kernel without tasks releases them, too
  if (spec.routing == Routing::Gather)
    gathered = b.scratch(b.i16, rows * columns);
  products = b.scratch(b.f32, rows * kPanelWidth);
}

void TileProducts::end() {
  if (areUsed())
    amx.release();
}

void TileProducts::configure(int64_t height) {
  amx.configure(configurations[llvm::Log2_64(std::min(height, AmxTiles::mostRows))]);
}

Ptr TileProducts::multiply(llvm::ArrayRef<Ptr> inputs, Ptr panel) {
  const int64_t height = std::ssize(inputs), whole = spec.k / columns * columns;
  const int64_t parts = (height + AmxTiles::mostRows - 1) / AmxTiles::mostRows;
  constexpr int64_t elementBytes = 2, sumBytes = 4;
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t v = 0; v < kVectors; ++v)
      amx.zero(sumsOf(part, v));
  b.loop(b.cI64(0), b.cI64(whole), columns, [&](Val column) {
    Ptr weights = panel + column * kPanelWidth;
    b.prefetchPanel(weights, columns * kPanelWidth * elementBytes, height);
    for (int64_t v = 0; v < kVectors; ++v)
      amx.load(weightsOf(v), weights + v * (2 * kLanes), 2 * kPanelWidth * elementBytes);
    Ptr from = inputs.front() + column;
    int64_t stride = spec.xStride;
    if (spec.routing == Routing::Gather) { // they lie anywhere
      for (auto [m, row] : llvm::enumerate(inputs))
        (gathered + static_cast<int64_t>(m) * columns).store((row + column).load(columns));
      from = gathered;
      stride = columns;
    }
    for (int64_t part = 0; part < parts; ++part) {
      amx.load(rowsOf(part), from + part * AmxTiles::mostRows * stride, stride * elementBytes);
      for (int64_t v = 0; v < kVectors; ++v)
        amx.multiplyBf16(sumsOf(part, v), rowsOf(part), weightsOf(v));
    }
  });
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t v = 0; v < kVectors; ++v)
      amx.store(sumsOf(part, v), products + part * AmxTiles::mostRows * kPanelWidth + v * kLanes,
                kPanelWidth * sumBytes);
  if (whole < spec.k)
    for (auto [m, row] : llvm::enumerate(inputs)) {
      Ptr sums = products + static_cast<int64_t>(m) * kPanelWidth;
      PanelVectors rest{panel + whole * kPanelWidth, DType::BF16, 0, kVectors, /*prefetched=*/false};
      Vals results =
          pairProducts(b, row + whole, rest, spec.k - whole, {sums.load(kLanes), (sums + kLanes).load(kLanes)});
      for (int64_t v = 0; v < kVectors; ++v)
        (sums + v * kLanes).store(results[v]);
    }
  return products;
}

} // namespace moec::cpu
