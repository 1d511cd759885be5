// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/ByteSums.h"

#include <limits>

namespace moec::cpu {

/// `sums` and the products of four bytes each, in one instruction for each register of `lanes` sums.
static Val dotWords(llvm::StringRef instruction, int64_t lanes, Val sums, Val x, Val y) {
  KernelBuilder &b = *sums.builder;
  return b.inParts(kLanes / lanes, {sums, x, y}, [&](llvm::ArrayRef<Val> part) {
    auto bytes = [&](Val v) { return b.bitcast(v, b.vec(b.i8, 4 * lanes)); };
    return b.call(instruction, b.vec(b.i32, lanes), {part[0], bytes(part[1]), bytes(part[2])});
  });
}

/// Sums of two products each, by the instruction for the registers that there are.
static Val dotPairs(llvm::StringRef avx512, llvm::StringRef avx2, mlir::Type result, Val x, Val y) {
  KernelBuilder &b = *x.builder;
  bool wide = b.instructions == Isa::Avx512;
  return b.inParts(wide ? 1 : 2, {x, y}, [&](llvm::ArrayRef<Val> part) {
    return b.call(wide ? avx512 : avx2, b.vec(result, part[0].lanes() / 2), part);
  });
}

/// `sums` and the products of two i16 each.
static Val addPairs(Val sums, Val x, Val y) {
  return sums + dotPairs("llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx2.pmadd.wd", sums.builder->i32, x, y);
}

void ByteSums::add(Val x, Val y) {
  KernelBuilder &b = *sums.builder;
  const mlir::Type words = b.vec(b.i16, 2 * kLanes), bytes = b.vec(b.i8, 4 * kLanes);
  switch (b.instructions) {
  case Isa::Amx:
  case Isa::Avx512Dot:
    sums = dotWords("llvm.x86.avx512.vpdpbusd.512", 16, sums, x, y);
    return;
  case Isa::Avx2Dot:
    sums = dotWords("llvm.x86.avx512.vpdpbusd.256", 8, sums, x, y);
    return;
  case Isa::NeonI8mm:
    sums = dotWords("llvm.aarch64.neon.usdot.v4i32.v16i8", 4, sums, x, y);
    return;
  case Isa::NeonDot: {
    constexpr llvm::StringLiteral sdot = "llvm.aarch64.neon.sdot.v4i32.v16i8";
    if (largest <= std::numeric_limits<int8_t>::max()) {
      sums = dotWords(sdot, 4, sums, x, y);
      return;
    }
    // Less 128 they are signed; what that takes away comes back.
    sums = dotWords(sdot, 4, sums, x ^ static_cast<int32_t>(0x80808080), y) +
           (dotWords(sdot, 4, sums.like(0), sums.like(0x01010101), y) << 7);
    return;
  }
  case Isa::Neon:
    for (int64_t byte = 0; byte < 4; ++byte)
      sums = sums + ((x >> (8 * byte)) & 0xFF) * ((y << (24 - 8 * byte)) >> 24);
    return;
  case Isa::Avx2:
  case Isa::Avx512:
    break;
  }
  // As many pairs of products as fit into an i16 are summed up there.
  const int64_t most = std::numeric_limits<int16_t>::max() / (2 * 128 * largest);
  if (most > 0) {
    Val products = dotPairs("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx2.pmadd.ub.sw", b.i16, b.bitcast(x, bytes),
                            b.bitcast(y, bytes));
    pairs = waiting ? pairs + products : products;
    if (++waiting == most)
      sums = total();
    return;
  }
  // Two products would not fit into one: the even bytes and the odd ones go by themselves.
  Val evenX = b.bitcast(x & 0x00FF00FF, words), oddX = b.bitcast((x >> 8) & 0x00FF00FF, words);
  Val evenY = (b.bitcast(y, words) << 8) >> 8, oddY = b.bitcast(y, words) >> 8;
  sums = addPairs(addPairs(sums, evenX, evenY), oddX, oddY);
}

Val ByteSums::total() {
  if (waiting)
    sums = addPairs(sums, pairs, pairs.like(1));
  waiting = 0;
  return sums;
}

Val lookUpBytes(Val words, llvm::ArrayRef<uint8_t> table) {
  assert(table.size() == 16 && "an entry for each nibble");
  KernelBuilder &b = *words.builder;
  llvm::SmallVector<int32_t> entries; // the table again and again
  for (int64_t word = 0; word < kLanes; ++word) {
    uint32_t bytes = 0;
    for (int64_t byte = 0; byte < 4; ++byte)
      bytes |= uint32_t(table[(4 * word + byte) % 16]) << (8 * byte);
    entries.push_back(static_cast<int32_t>(bytes));
  }
  auto by = [&](llvm::StringRef instruction, int64_t lanes) {
    return b.inParts(kLanes / lanes, {b.constants(entries), words}, [&](llvm::ArrayRef<Val> part) {
      const mlir::Type bytes = b.vec(b.i8, 4 * lanes);
      return b.bitcast(b.call(instruction, bytes, {b.bitcast(part[0], bytes), b.bitcast(part[1], bytes)}),
                       b.vec(b.i32, lanes));
    });
  };
  switch (b.instructions) {
  case Isa::Amx:
  case Isa::Avx512Dot:
  case Isa::Avx512:
    return by("llvm.x86.avx512.pshuf.b.512", 16);
  case Isa::Avx2Dot:
  case Isa::Avx2:
    return by("llvm.x86.avx2.pshuf.b", 8);
  case Isa::NeonI8mm:
  case Isa::NeonDot:
  case Isa::Neon:
    return by("llvm.aarch64.neon.tbl1.v16i8", 4);
  }
  llvm_unreachable("all instructions are listed");
}

} // namespace moec::cpu
