// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/AmxTiles.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

#include <array>

namespace moec::cpu {

void AmxTiles::call(llvm::StringRef instruction, llvm::ArrayRef<Val> operands) {
  llvm::SmallVector<mlir::Value> values(operands.begin(), operands.end());
  mlir::LLVM::CallIntrinsicOp::create(b, b.getStringAttr("llvm.x86." + instruction), values);
}

Ptr AmxTiles::configuration(llvm::ArrayRef<Shape> shapes) {
  assert(shapes.size() <= registers);
  std::array<uint8_t, 64> bytes{};
  bytes[0] = 1; // the only palette there is
  for (auto [tile, shape] : llvm::enumerate(shapes)) {
    assert(shape.rows <= mostRows && shape.rowBytes <= mostRowBytes);
    bytes[16 + 2 * tile] = static_cast<uint8_t>(shape.rowBytes);
    bytes[48 + tile] = static_cast<uint8_t>(shape.rows);
  }
  Ptr memory = b.scratch(b.i64, bytes.size() / 8);
  for (size_t i = 0; i < bytes.size() / 8; ++i) {
    uint64_t word = 0;
    for (size_t byte = 0; byte < 8; ++byte)
      word |= static_cast<uint64_t>(bytes[8 * i + byte]) << (8 * byte);
    (memory + static_cast<int64_t>(i)).store(b.cI64(static_cast<int64_t>(word)));
  }
  return memory;
}

void AmxTiles::configure(Ptr configuration) { call("ldtilecfg", {configuration.base}); }

void AmxTiles::release() { call("tilerelease", {}); }

void AmxTiles::zero(int64_t tile) { call("tilezero", {number(tile)}); }

void AmxTiles::load(int64_t tile, Ptr from, int64_t stride) {
  call("tileloadd64", {number(tile), from.base, b.cI64(stride)});
}

void AmxTiles::store(int64_t tile, Ptr to, int64_t stride) {
  call("tilestored64", {number(tile), to.base, b.cI64(stride)});
}

void AmxTiles::multiply(llvm::StringRef instruction, int64_t sums, int64_t x, int64_t y) {
  call(instruction, {number(sums), number(x), number(y)});
}

} // namespace moec::cpu
