// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The instructions of Intel's AMX. It has eight registers, each a tile of up
/// to 16 rows of up to 64 bytes, which go by their numbers.

#ifndef MOEC_CODEGEN_CPU_AMXTILES_H
#define MOEC_CODEGEN_CPU_AMXTILES_H

#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

class AmxTiles {
public:
  static constexpr int64_t mostRows = 16, mostRowBytes = 64, registers = 8;

  struct Shape {
    int64_t rows = mostRows, rowBytes = mostRowBytes;
  };

  explicit AmxTiles(KernelBuilder &b) : b(b) {}

  /// Writes shapes of all registers to memory of the kernel, for `configure`.
  Ptr configuration(llvm::ArrayRef<Shape> shapes);
  /// Shapes the registers, and zeroes them. `release` gives them back, which every way out of a kernel must.
  void configure(Ptr configuration);
  void release();

  void zero(int64_t tile);
  /// Rows of a tile, `stride` bytes behind each other.
  void load(int64_t tile, Ptr from, int64_t stride);
  void store(int64_t tile, Ptr to, int64_t stride);

  /// i32 sums[m][n] += sum_k x[m][k] * y[k / 4][n][k % 4], of signed bytes: TDPBSSD.
  void multiplyBytes(int64_t sums, int64_t x, int64_t y) { multiply("tdpbssd", sums, x, y); }
  /// f32 sums[m][n] += e + o, where e and o are the sums of x[m][k] * y[k / 2][n][k % 2] over even and over odd k, each
  /// in one chain of fused multiply-adds from zero: TDPBF16PS, of bf16. Subnormal numbers count as zeros throughout.
  void multiplyBf16(int64_t sums, int64_t x, int64_t y) { multiply("tdpbf16ps", sums, x, y); }

private:
  void multiply(llvm::StringRef instruction, int64_t sums, int64_t x, int64_t y);
  void call(llvm::StringRef instruction, llvm::ArrayRef<Val> operands);
  Val number(int64_t tile) { return b.constant(b.i8, tile); }

  KernelBuilder &b;
};

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_AMXTILES_H
