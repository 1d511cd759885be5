// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/CodeProducts.h"

#include "codegen/Cpu/ByteSums.h"

namespace moec::cpu {

static_assert(QuantizeRowsSpec::group == GroupFormat::blockColumns);

// Registers of AMX, for 16 rows times 16 outputs over 32 columns.
static constexpr int64_t kSums = 0, kRows = 1, kCodes = 2;
static constexpr int64_t kTileColumns = GroupFormat::blockColumns;

CodeProducts::CodeProducts(KernelBuilder &b, const GemmSpec &spec, const Tiles &tiles)
    : b(b), spec(spec), tiles(tiles), format(spec.format()), amx(b) {}

void CodeProducts::begin() {
  if (!usesAmx())
    return;
  amx.configure(amx.configuration({{}, {.rowBytes = kTileColumns}, {.rows = kTileColumns / 4}}));
  unpacked = b.scratch(b.i8, kTileColumns * kLanes);
  gathered = b.scratch(b.i8, kTileColumns * AmxTiles::mostRows);
  products = b.scratch(b.i32, AmxTiles::mostRows * kLanes);
}

void CodeProducts::end() {
  if (usesAmx())
    amx.release();
}

Vals CodeProducts::sums(llvm::ArrayRef<Ptr> inputs, Ptr panel, int64_t first, int64_t width) {
  const int64_t columns = QuantizeRowsSpec::group, blocks = format.group / columns;
  const int64_t blockBytes = columns * kPanelWidth * format.bits() / 8;
  const Vals zeros(inputs.size() * width, b.constant(b.vec(b.f32), 0.0));
  return b.loop(b.cI64(0), b.cI64(spec.k / format.group), 1, zeros, [&](Val unit, llvm::ArrayRef<Val> totals) {
    Ptr at = panel + unit * format.unitBytes(kPanelWidth);
    Ptr codes = at + format.scaleBytes(kPanelWidth);
    if (first == 0)
      b.prefetchPanel(at, format.unitBytes(kPanelWidth), std::ssize(inputs));
    Group group;
    for (int64_t v = 0; v < width; ++v) {
      Val scale = b.loadNumbers(at, format.scale, first + v);
      group.scale.push_back(format.codes == CodeKind::F4E2M1 ? scale * 0.5 : scale);
      Ptr zero = at + kPanelWidth * byteSize(format.scale) + (first + v) * kLanes;
      if (format.hasZeros())
        group.zero.push_back(b.zeroExtend(zero.load(kLanes), b.i32));
    }
    if (blocks == 1)
      return addBlock(inputs, codes, unit, first, group, Vals(totals));
    return b.loop(b.cI64(0), b.cI64(blocks), 1, totals, [&](Val block, llvm::ArrayRef<Val> sums) {
      return addBlock(inputs, codes + block * blockBytes, unit * blocks + block, first, group, Vals(sums));
    });
  });
}

std::pair<Val, Val> CodeProducts::codesOf(Val nibbles) const {
  Val low = nibbles & 0x0F0F0F0F, high = (nibbles >> 4) & 0x0F0F0F0F;
  if (format.codes != CodeKind::F4E2M1)
    return {low, high};
  // Twice what they stand for, which is an integer, plus offsetOf.
  static constexpr uint8_t doubled[] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
  return {lookUpBytes(low, doubled), lookUpBytes(high, doubled)};
}

Val CodeProducts::startOf(Ptr record, const Group &group, int64_t v) {
  Ptr at = record + QuantizeRowsSpec::sumAt;
  if (!format.hasZeros())
    return b.splat(Ptr{at.base, b.i32}.load());
  // Less the sum of 32 bytes, which fits into 16 bits as zero points do: there is an instruction for such products.
  return b.splat(b.convert(Ptr{at.base, b.i16}.load(), b.i32)) * group.zero[v];
}

Vals CodeProducts::addBlockByAmx(llvm::ArrayRef<Ptr> inputs, Ptr codes, Val index, int64_t first, const Group &group,
                                 Vals totals) {
  constexpr int64_t wordBytes = 4 * kLanes, words = GroupFormat::blockColumns / GroupFormat::wordColumns;
  const bool nibbles = format.bits() == 4;
  auto wordAt = [&](Ptr bytes, int64_t offset) { return Ptr{(bytes + offset).base, b.i32}; };
  // Nibbles are unpacked to where a tile can be read from; bytes are read where they lie, signed as they are.
  Ptr weightWords = codes + first * wordBytes;
  int64_t weightStride = kPanelWidth * GroupFormat::wordColumns;
  if (nibbles) {
    for (int64_t word = 0; word < words / 2; ++word) {
      auto [low, high] = codesOf(wordAt(weightWords, word * weightStride).load(kLanes));
      wordAt(unpacked, word * wordBytes).store(low);
      wordAt(unpacked, (word + words / 2) * wordBytes).store(high);
    }
    weightWords = unpacked;
    weightStride = wordBytes;
  }
  llvm::SmallVector<Ptr> records;
  for (Ptr row : inputs)
    records.push_back(row + index * QuantizeRowsSpec::recordBytes);
  Ptr rows = records.front();
  int64_t rowStride = spec.xStride;
  if (spec.routing == Routing::Gather) { // they lie anywhere
    for (auto [m, record] : llvm::enumerate(records))
      (gathered + static_cast<int64_t>(m) * kTileColumns).store(record.load(kTileColumns));
    rows = gathered;
    rowStride = kTileColumns;
  }
  amx.zero(kSums);
  amx.load(kRows, rows, rowStride);
  amx.load(kCodes, weightWords, weightStride);
  amx.multiplyBytes(kSums, kRows, kCodes);
  amx.store(kSums, products, wordBytes);
  for (auto [m, record] : llvm::enumerate(records)) {
    Val sum = (products + static_cast<int64_t>(m) * kLanes).load(kLanes);
    if (nibbles) // they count from 0 upwards; bytes are signed already
      sum = sum + startOf(record, group, 0);
    Val by = b.splat(Ptr{(record + QuantizeRowsSpec::scaleAt).base, b.f32}.load());
    totals[m] = b.fma(b.convert(sum, b.f32), group.scale[0] * by, totals[m]);
  }
  return totals;
}

Vals CodeProducts::addBlock(llvm::ArrayRef<Ptr> inputs, Ptr codes, Val index, int64_t first, const Group &group,
                            Vals totals) {
  if (usesAmx() && inputs.size() == AmxTiles::mostRows && group.scale.size() == 1)
    return addBlockByAmx(inputs, codes, index, first, group, std::move(totals));
  constexpr int64_t wordColumns = GroupFormat::wordColumns, block = GroupFormat::blockColumns;
  const bool nibbles = format.bits() == 4;
  const int64_t width = group.scale.size(), words = block / wordColumns;
  // Of the bytes that codes are multiplied as.
  const int64_t largest = !nibbles ? 255 : format.codes == CodeKind::F4E2M1 ? 24 : 15;
  // Codes of each four columns, unsigned. Words that lie together in memory follow each other.
  llvm::SmallVector<int64_t> order;
  llvm::SmallVector<Vals> unsignedCodes(words);
  auto unpack = [&](int64_t word) {
    for (int64_t v = 0; v < width; ++v) {
      Ptr at = codes + (word * kPanelWidth + (first + v) * kLanes) * wordColumns;
      Val packed = Ptr{at.base, b.i32}.load(kLanes);
      if (nibbles) {
        auto [low, high] = codesOf(packed);
        unsignedCodes[word].push_back(low);
        unsignedCodes[word + words / 2].push_back(high);
      } else {
        unsignedCodes[word].push_back(packed ^ static_cast<int32_t>(0x80808080));
      }
    }
  };
  for (int64_t word = 0; word < (nibbles ? words / 2 : words); ++word) {
    order.push_back(word);
    if (nibbles)
      order.push_back(word + words / 2);
    if (tiles.codesAhead)
      unpack(word);
  }
  // Some rows at a time: each waits for its own last product.
  constexpr size_t together = 8;
  for (size_t begin = 0; begin < inputs.size(); begin += together) {
    llvm::SmallVector<Ptr> records;
    llvm::SmallVector<llvm::SmallVector<ByteSums, 2>> sums;
    for (Ptr row : inputs.slice(begin).take_front(together)) {
      records.push_back(row + index * QuantizeRowsSpec::recordBytes);
      sums.emplace_back();
      for (int64_t v = 0; v < width; ++v)
        sums.back().emplace_back(startOf(records.back(), group, v), largest);
    }
    for (int64_t word : order) {
      if (unsignedCodes[word].empty())
        unpack(word);
      for (auto [record, sum] : llvm::zip(records, sums)) {
        Val with = b.splat(Ptr{(record + word * wordColumns).base, b.i32}.load());
        for (int64_t v = 0; v < width; ++v)
          sum[v].add(unsignedCodes[word][v], with);
      }
    }
    for (auto [m, record, sum] : llvm::enumerate(records, sums)) {
      Val by = b.splat(Ptr{(record + QuantizeRowsSpec::scaleAt).base, b.f32}.load());
      for (int64_t v = 0; v < width; ++v) {
        Val &total = totals[(begin + m) * width + v];
        total = b.fma(b.convert(sum[v].total(), b.f32), group.scale[v] * by, total);
      }
    }
  }
  return totals;
}

} // namespace moec::cpu
