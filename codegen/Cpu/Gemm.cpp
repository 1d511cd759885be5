// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Matrix products over weight panels. A task owns the outputs of one panel for
/// some rows and keeps a tile of them in registers: for each k, every row's x is
/// broadcast against the panel's 32 weights. One accumulator per output takes
/// the products in order of k, so a row's bits do not depend on its tile.
/// CodeProducts does the same for codes on both sides, TileProducts for bf16 where
/// there are tiles of AMX.

#include "codegen/Cpu/CodeProducts.h"
#include "codegen/Cpu/Emitters.h"
#include "codegen/Cpu/Math.h"
#include "codegen/Cpu/PanelProducts.h"
#include "codegen/Cpu/Rounding.h"
#include "codegen/Cpu/TileProducts.h"

#include <array>
#include <limits>
#include <numeric>

namespace moec::cpu {

namespace {

class GemmEmitter {
public:
  GemmEmitter(KernelBuilder &b, const GemmSpec &spec, const Tiles &tiles)
      : b(b), spec(spec), tiles(tiles), routed(spec.routing != Routing::None),
        scaleBlocks(spec.scaleCols ? (spec.k + spec.scaleCols - 1) / spec.scaleCols : 0),
        columns(spec.epilogue == Epilogue::Swiglu ? kPanelWidth / 2 : kPanelWidth), format(spec.format()),
        codes(b, spec, tiles), pairs(b, spec) {}

  void emit() {
    int64_t next = 0;
    x = b.arg(next++, b.storage(spec.input));
    weights = b.arg(next++, b.storage(spec.weight));
    if (scaleBlocks)
      scales = b.arg(next++, b.f32);
    if (spec.epilogue == Epilogue::Add)
      residual = b.arg(next++, b.f32);
    y = b.arg(next++, b.storage(spec.output));
    if (spec.epilogue == Epilogue::Argmax) {
      hasY = b.isNotNull(y);
      candidates = b.arg(next++, b.f32);
    }
    if (routed) {
      offsets = b.arg(next++, b.i32);
      active = b.arg(next++, b.i32);
      order = b.arg(next++, b.i32);
    }
    if (spec.output == DType::U8)
      results = b.scratch(b.f32, tileRows().most * QuantizeRowsSpec::group);
    codes.begin();
    pairs.begin();
    b.tasks([&](Val task) { routed ? expertTask(task) : blockTask(task); });
    pairs.end();
    codes.end();
  }

private:
  static constexpr int64_t vectorsPerPanel = kPanelWidth / kLanes;

  /// How many rows a tile has at most, and at most if it is as wide as the panel.
  struct TileRows {
    int64_t most, wide;
  };
  TileRows tileRows() const {
    switch (spec.input) {
    case DType::U8:
      return {tiles.dotRows, tiles.dotRows / 4};
    case DType::BF16:
      return pairs.areUsed() ? TileRows{TileProducts::rows, TileProducts::rows}
                             : TileRows{tiles.pairRows, tiles.pairRowsWide};
    default:
      return {std::min(tiles.gemmRows, tiles.gemmAccumulators / chains()),
              tiles.gemmAccumulators / (vectorsPerPanel * chains())};
    }
  }

  /// Where a panel lies, the first one of a task.
  struct Panel {
    Val index;    ///< in the matrix: p
    Val batch;    ///< b
    Val position; ///< in the whole tensor: b * panels + p

    Panel operator+(Val panels) const { return {index + panels, batch, position + panels}; }
  };

  void blockTask(Val task) {
    Val panel = task % spec.parts() * spec.panelsPerTask();
    Val rest = task / spec.parts();
    Val batch = rest % spec.batch;
    Val begin = rest / spec.batch * GemmSpec::tokenBlock;
    Val rows = spec.rows == Rows::T ? b.tokens() : b.rows();
    rowRange(begin, b.min(begin + GemmSpec::tokenBlock, rows), {panel, batch, batch * spec.panels() + panel});
  }

  void expertTask(Val task) {
    Val panel = task % spec.parts() * spec.panelsPerTask();
    Val which = task / spec.parts();
    b.ifThen(which < b.convert(active.load(), b.i64), [&] {
      Val expert = b.convert((active + 1 + which).load(), b.i64);
      Val begin = b.convert((offsets + expert).load(), b.i64);
      Val end = b.convert((offsets + expert + 1).load(), b.i64);
      rowRange(begin, end, {panel, expert, expert * spec.panels() + panel});
    });
  }

  /// Covers rows [begin, end) by tiles of the full height, then by smaller powers of two.
  void rowRange(Val begin, Val end, const Panel &panel) {
    int64_t height = tileRows().most;
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
    llvm::SmallVector<Ptr, 8> inputs;
    for (int64_t m = 0; m < height; ++m)
      inputs.push_back(inputRow(row, m, panel));
    if (pairs.areUsed())
      pairs.configure(height);
    if (spec.panelsPerTask() == 1)
      multiply(inputs, row, panel, b.cI64(0));
    else
      b.loop(b.cI64(0), b.cI64(spec.panelsPerTask()), 1,
             [&](Val which) { multiply(inputs, row, panel + which, which * columns); });
    if (spec.output == DType::U8)
      b.loop(b.cI64(0), b.cI64(height), 1, [&](Val m) { storeRecord(row, m, panel); });
  }

  /// The outputs of a panel, which come at `column` among those of the task.
  void multiply(llvm::ArrayRef<Ptr> inputs, Val row, const Panel &panel, Val column) {
    // As wide as registers allow; narrow tiles walk over the panel once per vector.
    const int64_t height = std::ssize(inputs), width = height <= tileRows().wide ? vectorsPerPanel : 1;
    int64_t panelSize = spec.group ? format.panelBytes(kPanelWidth, spec.k) : spec.k * kPanelWidth;
    Ptr panelWeights = weights + panel.position * panelSize;

    if (pairs.areUsed()) {
      Ptr sums = pairs.multiply(inputs, panelWeights);
      b.loop(b.cI64(0), b.cI64(height), 1, [&](Val m) {
        Ptr ofRow = sums + m * kPanelWidth;
        finish(row, m, panel, column, {ofRow.load(kLanes), (ofRow + kLanes).load(kLanes)});
      });
      return;
    }
    // sums[m][v] for the panel's vectors.
    llvm::SmallVector<Vals> sums(height);
    for (int64_t first = 0; first < vectorsPerPanel; first += width) {
      Vals part = spec.input == DType::U8 ? codes.sums(inputs, panelWeights, first, width)
                  : spec.input == DType::BF16
                      ? pairProducts(b, inputs, vectorsOf(panelWeights, first, width), spec.k, zeros(height * width))
                  : spec.group  ? groupedSums(inputs, panelWeights, first, width)
                  : scaleBlocks ? scaledSums(inputs, panelWeights, panel, first, width)
                                : plainSums(inputs, panelWeights, first, width);
      for (int64_t m = 0; m < height; ++m)
        sums[m].append(part.begin() + m * width, part.begin() + (m + 1) * width);
    }
    for (int64_t m = 0; m < height; ++m)
      finish(row, b.cI64(m), panel, column, sums[m]);
  }

  Ptr inputRow(Val row, int64_t m, const Panel &panel) {
    if (spec.routing == Routing::Gather)
      return x + b.convert((order + row + m).load(), b.i64) / spec.topk * spec.xStride;
    Ptr base = x + row * spec.xStride;
    if (!routed)
      base = base + panel.batch * spec.xBatch;
    return base + m * spec.xStride;
  }

  PanelVectors vectorsOf(Ptr panelWeights, int64_t first, int64_t width) const {
    return {panelWeights, spec.weight, first, width, /*prefetched=*/true};
  }

  Vals zeros(size_t count) { return Vals(count, b.constant(b.vec(b.f32), 0.0)); }

  Vals plainSums(llvm::ArrayRef<Ptr> inputs, Ptr panelWeights, int64_t first, int64_t width) {
    Vals sums = columnProducts(b, inputs, spec.input, vectorsOf(panelWeights, first, width), spec.k);
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
      Vals sums = columnProducts(b, inputs, spec.input, vectorsOf(panelWeights, first, width), from, to, zeros(count));
      Vals scale, next;
      for (int64_t v = 0; v < width; ++v)
        scale.push_back((panelScales + block * kPanelWidth + v * kLanes).load(kLanes) *
                        KernelBuilder::weightScale(spec.weight));
      for (size_t i = 0; i < count; ++i)
        next.push_back(b.fma(sums[i], scale[i % width], totals[i]));
      return next;
    });
  }

  /// Sums over units of codes. Each output has two chains of products, so that a single row does not wait for its own
  /// last product: what lies in low nibbles and in high ones, or in the first and the last bytes of words.
  Vals groupedSums(llvm::ArrayRef<Ptr> inputs, Ptr panelWeights, int64_t first, int64_t width) {
    size_t count = inputs.size() * width;
    Ptr units = panelWeights + format.headerBytes(kPanelWidth);
    int64_t whole = spec.k / format.unit(), tail = spec.k % format.unit();
    Vals totals = zeros(count);
    if (whole)
      totals = b.loop(b.cI64(0), b.cI64(whole), 1, totals, [&](Val unit, llvm::ArrayRef<Val> sums) {
        return addUnit(inputs, units + unit * format.unitBytes(kPanelWidth), unit * format.unit(), format.unit(), first,
                       width, Vals(sums));
      });
    if (tail)
      totals = addUnit(inputs, units + whole * format.unitBytes(kPanelWidth), b.cI64(whole * format.unit()), tail,
                       first, width, totals);
    if (format.hasGlobal())
      for (size_t i = 0; i < count; ++i)
        totals[i] = totals[i] * b.loadNumbers(panelWeights, DType::F32, first + i % width);
    return totals;
  }

  /// `totals` and the products of one unit of `columns` columns from `column` on.
  Vals addUnit(llvm::ArrayRef<Ptr> inputs, Ptr unit, Val column, int64_t columns, int64_t first, int64_t width,
               Vals totals) {
    constexpr int64_t wordColumns = GroupFormat::wordColumns, block = GroupFormat::blockColumns;
    const bool nibbles = format.bits() == 4;
    const size_t count = totals.size();
    const int64_t perUnit = format.unit() / format.group, scaleBytes = perUnit * byteSize(format.scale);
    if (first == 0)
      b.prefetchPanel(unit, format.unitBytes(kPanelWidth), std::ssize(inputs));
    Ptr at = unit + format.scaleBytes(kPanelWidth) + first * kLanes * wordColumns;
    Vals zero;
    if (format.hasZeros())
      for (int64_t v = 0; v < width; ++v)
        zero.push_back(b.convert(
            b.zeroExtend((unit + kPanelWidth * scaleBytes + (first + v) * kLanes).load(kLanes), b.i32), b.f32));
    // What one word of each lane adds; `present` of its columns are there.
    auto addWord = [&](Val word, Vals sums, int64_t present) {
      Ptr words = at + word * (kPanelWidth * wordColumns);
      Val low = nibbles ? column + word / wordColumns * block + word % wordColumns * wordColumns
                        : column + word * wordColumns;
      Vals packed;
      for (int64_t v = 0; v < width; ++v)
        packed.push_back(Ptr{(words + v * kLanes * wordColumns).base, b.i32}.load(kLanes));
      for (int64_t i = 0; i < present; ++i) {
        int64_t chain = nibbles ? i / wordColumns : i % 2;
        int64_t offset = nibbles ? i % wordColumns + chain * (block / 2) : i;
        Vals w;
        for (int64_t v = 0; v < width; ++v) {
          w.push_back(codeValue(packed[v], nibbles ? 8 * (i % wordColumns) + 4 * chain : 8 * i));
          if (format.hasZeros())
            w.back() = w.back() - zero[v];
        }
        for (size_t m = 0; m < inputs.size(); ++m) {
          Val value = b.splat((inputs[m] + low + offset).load());
          for (int64_t v = 0; v < width; ++v) {
            Val &sum = sums[chain * count + m * width + v];
            sum = b.fma(value, w[v], sum);
          }
        }
      }
      return sums;
    };
    const int64_t perWord = nibbles ? 2 * wordColumns : wordColumns, words = columns / perWord;
    Vals sums = b.loop(b.cI64(0), b.cI64(words), 1, zeros(2 * count),
                       [&](Val word, llvm::ArrayRef<Val> carried) { return addWord(word, Vals(carried), perWord); });
    if (columns % perWord)
      sums = addWord(b.cI64(words), sums, columns % perWord);
    Vals scale;
    for (int64_t i = 0; i < perUnit; ++i)
      for (int64_t v = 0; v < width; ++v)
        scale.push_back(b.loadNumbers(unit + i * kPanelWidth * byteSize(format.scale), format.scale, first + v) *
                        codeScale());
    for (size_t i = 0; i < count; ++i) {
      Val low = sums[i], high = sums[count + i], by = scale[i % width];
      if (perUnit == 1)
        totals[i] = b.fma(low + high, by, totals[i]);
      else // groups of 16: one in the low nibbles, one in the high ones
        totals[i] = b.fma(high, scale[width + i % width], b.fma(low, by, totals[i]));
    }
    return totals;
  }

  /// What the code at bit `shift` of each word stands for, over `codeScale`; exact.
  Val codeValue(Val words, int64_t shift) {
    constexpr int32_t two23 = 0x4B000000; // 2^23 as f32, whose last bit is one
    auto moved = [&](int64_t by) { return by > 0 ? words >> by : by < 0 ? words << -by : words; };
    switch (format.codes) {
    case CodeKind::Int4:
      return b.bitcast((moved(shift) & 15) | two23, b.f32) - (8388608.0 + 8);
    case CodeKind::Int4Zero:
      return b.bitcast((moved(shift) & 15) | two23, b.f32) - 8388608.0;
    case CodeKind::Int8:
      return b.convert(moved(shift - 24) >> 24, b.f32);
    case CodeKind::F8E4M3: {
      // As in KernelBuilder::loadAsF32.
      Val bits = b.convert((moved(shift - 24) >> 17) & 0xBF80, b.i16);
      return b.convert(b.bitcast(bits, b.f16), b.f32);
    }
    case CodeKind::F4E2M1: {
      // Exponent and mantissa end where f16 has them; f16 counts exponents from 15, e2m1 from 1.
      Val bits = b.convert((moved(shift - 9) & 0x0E00) | (moved(shift - 12) & 0x8000), b.i16);
      return b.convert(b.bitcast(bits, b.f16), b.f32);
    }
    }
    llvm_unreachable("all codes are listed");
  }
  double codeScale() const {
    return format.codes == CodeKind::F8E4M3   ? KernelBuilder::weightScale(DType::F8E4M3)
           : format.codes == CodeKind::F4E2M1 ? 0x1p14
                                              : 1.0;
  }

  /// Accumulators of one output.
  int64_t chains() const { return spec.group ? 2 : 1; }

  Val outputRow(Val row) { return spec.routing == Routing::Scatter ? b.convert((order + row).load(), b.i64) : row; }

  /// Where the outputs of a panel's head begin in a row of y.
  Val headOf(const Panel &panel) { return !routed && spec.batch > 1 ? panel.batch * spec.yBatch : b.cI64(0); }

  /// Epilogue and stores of row `row + m`: into y, or to where the codes of a whole record are made.
  void finish(Val row, Val m, const Panel &panel, Val taskColumn, Vals sums) {
    Val outRow = outputRow(row + m), column = panel.index * columns, inRow = headOf(panel) + column;
    if (spec.epilogue == Epilogue::Swiglu)
      sums = {silu(b, sums[0]) * sums[1]};
    if (spec.epilogue == Epilogue::Argmax)
      storeCandidate(outRow, panel, sums);
    for (auto [v, value] : llvm::enumerate(sums)) {
      int64_t lane = v * kLanes;
      if (spec.epilogue == Epilogue::Add)
        value = (residual + outRow * spec.residualStride + inRow + lane).load(kLanes) + value;
      if (spec.output == DType::U8) {
        (results + m * QuantizeRowsSpec::group + taskColumn + lane).store(value);
        continue;
      }
      Val mask;
      if (spec.n % columns)
        mask = b.firstLanes(spec.n - lane - column);
      auto store = [&] {
        (y + outRow * spec.yStride + inRow + lane).store(spec.output == DType::BF16 ? b.toBf16(value) : value, mask);
      };
      hasY.value ? b.ifThen(hasY, store) : store();
    }
  }

  /// The greatest number of a panel's results, and the first column that has it.
  void storeCandidate(Val row, const Panel &panel, const Vals &results) {
    Val none = results[0].like(-std::numeric_limits<double>::infinity()), column = panel.index * columns;
    Vals numbers;
    for (auto [v, value] : llvm::enumerate(results)) {
      Val counts = value > none;
      if (spec.n % columns)
        counts = counts & b.firstLanes(spec.n - static_cast<int64_t>(v) * kLanes - column);
      numbers.push_back(b.select(counts, value, none));
    }
    Val best = b.maxLanes(b.max(numbers[0], numbers[1]));
    Val first = b.constant(b.vec(b.i32), kPanelWidth);
    for (auto [v, value] : llvm::enumerate(numbers)) {
      std::array<int32_t, kLanes> lanes;
      std::iota(lanes.begin(), lanes.end(), static_cast<int32_t>(v * kLanes));
      first = b.min(first, b.select(value == b.splat(best), b.constants(lanes), first.like(kPanelWidth)));
    }
    Ptr value = candidates + row * (2 * spec.panels()) + panel.index;
    value.store(best);
    (value + spec.panels()).store(b.bitcast(b.minIntLanes(first) + b.convert(column, b.i32), b.f32));
  }

  /// The results of row `row + m` as a record of y.
  void storeRecord(Val row, Val m, const Panel &panel) {
    constexpr int64_t group = QuantizeRowsSpec::group;
    Ptr record = y + outputRow(row + m) * spec.yStride + headOf(panel) +
                 panel.index / spec.panelsPerTask() * QuantizeRowsSpec::recordBytes;
    storeRecords(b, results + m * group, record, group, group, spec.outputOffset);
  }

  KernelBuilder &b;
  const GemmSpec &spec;
  const Tiles &tiles;
  bool routed;
  int64_t scaleBlocks; ///< per row of weights; 0: no scales
  int64_t columns;     ///< outputs of a panel
  GroupFormat format;  ///< of codes
  CodeProducts codes;  ///< where x is codes as well
  TileProducts pairs;  ///< where x and weights are bf16
  Ptr x, weights, scales, residual, y, offsets, active, order;
  Ptr candidates;
  Val hasY;    ///< whether y is asked for; null: always
  Ptr results; ///< of a tile, f32[rows, 32], before they become codes
};

} // namespace

void emit(KernelBuilder &b, llvm::StringRef symbol, const GemmSpec &spec, const Tiles &tiles) {
  b.kernel(symbol, [&] { GemmEmitter(b, spec, tiles).emit(); });
}

} // namespace moec::cpu
