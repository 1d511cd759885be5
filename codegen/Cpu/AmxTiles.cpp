// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/AmxTiles.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

#include <array>

namespace moec::cpu {

namespace {

/// What LDTILECFG reads.
struct Configuration {
  std::array<uint8_t, 64> bytes{};

  Configuration() { bytes[0] = 1; } // the only palette there is
  void shape(size_t tile, uint8_t rows, uint8_t rowBytes) {
    bytes[16 + 2 * tile] = rowBytes;
    bytes[48 + tile] = rows;
  }
  int64_t word(size_t index) const {
    uint64_t word = 0;
    for (size_t i = 0; i < 8; ++i)
      word |= static_cast<uint64_t>(bytes[8 * index + i]) << (8 * i);
    return static_cast<int64_t>(word);
  }
};

// Numbers of registers.
constexpr int64_t kSums = 0, kRows = 1, kCodes = 2;

} // namespace

void AmxTiles::call(llvm::StringRef instruction, llvm::ArrayRef<Val> operands) {
  llvm::SmallVector<mlir::Value> values(operands.begin(), operands.end());
  mlir::LLVM::CallIntrinsicOp::create(b, b.getStringAttr("llvm.x86." + instruction), values);
}

void AmxTiles::configure() {
  constexpr int64_t bytesOfLanes = 4 * kLanes;
  Configuration configuration;
  configuration.shape(kSums, rows, bytesOfLanes);
  configuration.shape(kRows, rows, columns);
  configuration.shape(kCodes, columns / 4, bytesOfLanes);
  Ptr memory = b.scratch(b.i64, 8);
  for (size_t i = 0; i < 8; ++i)
    (memory + static_cast<int64_t>(i)).store(b.cI64(configuration.word(i)));
  call("ldtilecfg", {memory.base});
  sums = b.scratch(b.i32, rows * kLanes);
}

void AmxTiles::release() { call("tilerelease", {}); }

Ptr AmxTiles::multiply(Ptr row, int64_t stride, Ptr codes, int64_t codeStride) {
  auto tile = [&](int64_t number) { return b.constant(b.i8, number); };
  call("tilezero", {tile(kSums)});
  call("tileloadd64", {tile(kRows), row.base, b.cI64(stride)});
  call("tileloadd64", {tile(kCodes), codes.base, b.cI64(codeStride)});
  call("tdpbssd", {tile(kSums), tile(kRows), tile(kCodes)});
  call("tilestored64", {tile(kSums), sums.base, b.cI64(4 * kLanes)});
  return sums;
}

} // namespace moec::cpu
