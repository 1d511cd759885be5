// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Matrix products over weight panels. A task owns the outputs of one panel for
/// some rows and keeps a tile of them in registers: for each k, every row's x is
/// broadcast against the panel's 32 weights. One accumulator per output takes
/// the products in order of k, so a row's bits do not depend on its tile.

#include "codegen/Cpu/Emitters.h"
#include "codegen/Cpu/Math.h"

namespace moec::cpu {

namespace {

class GemmEmitter {
public:
  GemmEmitter(KernelBuilder &b, const GemmSpec &spec, const Tiles &tiles)
      : b(b), spec(spec), tiles(tiles), routed(spec.routing != Routing::None),
        scaleBlocks(spec.scaleCols ? (spec.k + spec.scaleCols - 1) / spec.scaleCols : 0),
        columns(spec.epilogue == Epilogue::Swiglu ? kPanelWidth / 2 : kPanelWidth) {}

  void emit() {
    int64_t next = 0;
    x = b.arg(next++, b.f32);
    weights = b.arg(next++, b.storage(spec.weight));
    if (scaleBlocks)
      scales = b.arg(next++, b.f32);
    if (spec.epilogue == Epilogue::Add)
      residual = b.arg(next++, b.f32);
    y = b.arg(next++, b.f32);
    if (routed) {
      offsets = b.arg(next++, b.i32);
      active = b.arg(next++, b.i32);
      order = b.arg(next++, b.i32);
    }
    b.tasks([&](Val task) { routed ? expertTask(task) : blockTask(task); });
  }

private:
  static constexpr int64_t vectorsPerPanel = kPanelWidth / kLanes;

  /// Where a task's panel lies.
  struct Panel {
    Val index;    ///< in the matrix: p
    Val batch;    ///< b
    Val position; ///< in the whole tensor: b * panels + p
  };

  void blockTask(Val task) {
    Val panel = task % spec.panels();
    Val rest = task / spec.panels();
    Val batch = rest % spec.batch;
    Val begin = rest / spec.batch * GemmSpec::tokenBlock;
    Val rows = spec.rows == Rows::T ? b.tokens() : b.rows();
    rowRange(begin, b.min(begin + GemmSpec::tokenBlock, rows), {panel, batch, batch * spec.panels() + panel});
  }

  void expertTask(Val task) {
    Val panel = task % spec.panels();
    Val which = task / spec.panels();
    b.ifThen(which < b.convert(active.load(), b.i64), [&] {
      Val expert = b.convert((active + 1 + which).load(), b.i64);
      Val begin = b.convert((offsets + expert).load(), b.i64);
      Val end = b.convert((offsets + expert + 1).load(), b.i64);
      rowRange(begin, end, {panel, expert, expert * spec.panels() + panel});
    });
  }

  /// Covers rows [begin, end) by tiles of the full height, then by smaller powers of two.
  void rowRange(Val begin, Val end, const Panel &panel) {
    int64_t height = std::min(tiles.gemmRows, tiles.gemmAccumulators / chains());
    Val whole = begin + (end - begin) / height * height;
    b.loop(begin, whole, height, [&](Val row) { tile(row, height, panel); });
    Val row = whole;
    int64_t part = 1;
    while (part * 2 < height)
      part *= 2;
    for (; part >= 1 && height > 1; part /= 2) {
      Val fits = end - row >= part;
      b.ifThen(fits, [&] { tile(row, part, panel); });
      row = b.select(fits, row + part, row);
    }
  }

  void tile(Val row, int64_t height, const Panel &panel) {
    // As wide as registers allow; narrow tiles walk over the panel once per vector.
    int64_t width = height * vectorsPerPanel * chains() <= tiles.gemmAccumulators ? vectorsPerPanel : 1;
    llvm::SmallVector<Ptr, 8> inputs;
    for (int64_t m = 0; m < height; ++m)
      inputs.push_back(inputRow(row, m, panel));
    int64_t panelSize = spec.group ? spec.k / spec.group * spec.groupBytes() : spec.k * kPanelWidth;
    Ptr panelWeights = weights + panel.position * panelSize;

    // sums[m][v] for the panel's vectors.
    llvm::SmallVector<Vals> sums(height);
    for (int64_t first = 0; first < vectorsPerPanel; first += width) {
      Vals part = spec.group    ? groupedSums(inputs, panelWeights, first, width)
                  : scaleBlocks ? scaledSums(inputs, panelWeights, panel, first, width)
                                : plainSums(inputs, panelWeights, first, width);
      for (int64_t m = 0; m < height; ++m)
        sums[m].append(part.begin() + m * width, part.begin() + (m + 1) * width);
    }
    for (int64_t m = 0; m < height; ++m)
      finish(row, m, panel, sums[m]);
  }

  Ptr inputRow(Val row, int64_t m, const Panel &panel) {
    if (spec.routing == Routing::Gather)
      return x + b.convert((order + row + m).load(), b.i64) / spec.topk * spec.xStride;
    Ptr base = x + row * spec.xStride;
    if (!routed)
      base = base + panel.batch * spec.xBatch;
    return base + m * spec.xStride;
  }

  /// The products' sums over k in [from, to), added to `sums` ([m][v]).
  Vals accumulate(llvm::ArrayRef<Ptr> inputs, Ptr panelWeights, Val from, Val to, int64_t first, int64_t width,
                  const Vals &sums) {
    return b.loop(from, to, 1, sums, [&](Val k, llvm::ArrayRef<Val> carried) {
      Ptr at = panelWeights + k * kPanelWidth + first * kLanes;
      Vals w, next;
      for (int64_t v = 0; v < width; ++v)
        w.push_back(b.loadAsF32(at + v * kLanes, spec.weight));
      for (size_t m = 0; m < inputs.size(); ++m) {
        Val value = b.splat((inputs[m] + k).load());
        for (int64_t v = 0; v < width; ++v)
          next.push_back(b.fma(value, w[v], carried[m * width + v]));
      }
      return next;
    });
  }

  Vals zeros(size_t count) { return Vals(count, b.constant(b.vec(b.f32), 0.0)); }

  Vals plainSums(llvm::ArrayRef<Ptr> inputs, Ptr panelWeights, int64_t first, int64_t width) {
    Vals sums = accumulate(inputs, panelWeights, b.cI64(0), b.cI64(spec.k), first, width, zeros(inputs.size() * width));
    double scale = KernelBuilder::weightScale(spec.weight);
    if (scale != 1)
      for (Val &sum : sums)
        sum = sum * scale;
    return sums;
  }

  Vals scaledSums(llvm::ArrayRef<Ptr> inputs, Ptr panelWeights, const Panel &panel, int64_t first, int64_t width) {
    size_t count = inputs.size() * width;
    Ptr panelScales = scales + panel.position * (scaleBlocks * kPanelWidth) + first * kLanes;
    return b.loop(b.cI64(0), b.cI64(scaleBlocks), 1, zeros(count), [&](Val block, llvm::ArrayRef<Val> totals) {
      Val from = block * spec.scaleCols;
      Val to = from + spec.scaleCols;
      if (spec.k % spec.scaleCols)
        to = b.min(to, b.cI64(spec.k));
      Vals sums = accumulate(inputs, panelWeights, from, to, first, width, zeros(count));
      Vals scale, next;
      for (int64_t v = 0; v < width; ++v)
        scale.push_back((panelScales + block * kPanelWidth + v * kLanes).load(kLanes) *
                        KernelBuilder::weightScale(spec.weight));
      for (size_t i = 0; i < count; ++i)
        next.push_back(b.fma(sums[i], scale[i % width], totals[i]));
      return next;
    });
  }

  /// Sums over int4 groups. What lies in low nibbles and in high ones is summed apart, in the order of the packed
  /// words: two chains of products for each output, so that a single row does not wait for its own last product.
  Vals groupedSums(llvm::ArrayRef<Ptr> inputs, Ptr panelWeights, int64_t first, int64_t width) {
    constexpr int64_t blockColumns = 32, wordColumns = 4;
    size_t count = inputs.size() * width;
    int64_t scaleBytes = byteSize(spec.groupScale);
    return b.loop(b.cI64(0), b.cI64(spec.k / spec.group), 1, zeros(count), [&](Val group, llvm::ArrayRef<Val> totals) {
      Ptr at = panelWeights + group * spec.groupBytes();
      Ptr codes = at + kPanelWidth * scaleBytes + first * kLanes * 4;
      Val column = group * spec.group;
      Vals sums = b.loop(b.cI64(0), b.cI64(spec.group / blockColumns * 4), 1, zeros(2 * count),
                         [&](Val word, llvm::ArrayRef<Val> carried) {
                           Ptr words = codes + word * (kPanelWidth * 4);
                           Val low = column + word / 4 * blockColumns + word % 4 * wordColumns;
                           Vals packed, next(carried);
                           for (int64_t v = 0; v < width; ++v)
                             packed.push_back(Ptr{(words + v * kLanes * 4).base, b.i32}.load(kLanes));
                           for (int64_t half : {0, 1})
                             for (int64_t j = 0; j < wordColumns; ++j) {
                               Vals w;
                               for (int64_t v = 0; v < width; ++v)
                                 w.push_back(codeValue(packed[v], 8 * j + 4 * half));
                               for (size_t m = 0; m < inputs.size(); ++m) {
                                 Val value = b.splat((inputs[m] + low + (16 * half + j)).load());
                                 for (int64_t v = 0; v < width; ++v) {
                                   Val &sum = next[half * count + m * width + v];
                                   sum = b.fma(value, w[v], sum);
                                 }
                               }
                             }
                           return next;
                         });
      Vals scale, next;
      for (int64_t v = 0; v < width; ++v) {
        Ptr stored{(at + (first + v) * kLanes * scaleBytes).base, b.storage(spec.groupScale)};
        scale.push_back(b.loadAsF32(stored, spec.groupScale));
      }
      for (size_t i = 0; i < count; ++i)
        next.push_back(b.fma(sums[i] + sums[count + i], scale[i % width], totals[i]));
      return next;
    });
  }

  /// The code at bit `shift` of each word, less 8: as the last bits of a float's mantissa it is exact.
  Val codeValue(Val words, int64_t shift) {
    constexpr int32_t two23 = 0x4B000000; // 2^23, where one is the last bit
    Val bits = ((shift ? words >> shift : words) & 15) | two23;
    return b.bitcast(bits, b.f32) - (8388608.0 + 8);
  }

  /// Accumulators of one output.
  int64_t chains() const { return spec.group ? 2 : 1; }

  /// Epilogue and stores of row `row + m`.
  void finish(Val row, int64_t m, const Panel &panel, Vals sums) {
    Val outRow = row + m;
    if (spec.routing == Routing::Scatter)
      outRow = b.convert((order + row + m).load(), b.i64);
    Val column = panel.index * columns;
    Val inRow = column;
    if (!routed && spec.batch > 1)
      inRow = inRow + panel.batch * spec.yBatch;
    if (spec.epilogue == Epilogue::Swiglu)
      sums = {silu(b, sums[0]) * sums[1]};
    for (auto [v, sum] : llvm::enumerate(sums)) {
      Val value = sum;
      int64_t lane = v * kLanes;
      if (spec.epilogue == Epilogue::Add)
        value = (residual + outRow * spec.residualStride + inRow + lane).load(kLanes) + value;
      Val mask;
      if (spec.n % columns)
        mask = b.firstLanes(spec.n - lane - column);
      (y + outRow * spec.yStride + inRow + lane).store(value, mask);
    }
  }

  KernelBuilder &b;
  const GemmSpec &spec;
  const Tiles &tiles;
  bool routed;
  int64_t scaleBlocks; ///< per row of weights; 0: no scales
  int64_t columns;     ///< outputs of a panel
  Ptr x, weights, scales, residual, y, offsets, active, order;
};

} // namespace

void emit(KernelBuilder &b, llvm::StringRef symbol, const GemmSpec &spec, const Tiles &tiles) {
  b.kernel(symbol, [&] { GemmEmitter(b, spec, tiles).emit(); });
}

} // namespace moec::cpu
