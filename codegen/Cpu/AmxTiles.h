// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Integer products by Intel's AMX, whose registers hold 16 rows of 64 bytes.

#ifndef MOEC_CODEGEN_CPU_AMXTILES_H
#define MOEC_CODEGEN_CPU_AMXTILES_H

#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// 16 rows times 16 outputs over 32 columns in one instruction, TDPBSSD. There is no bf16 here: TDPBF16PS sums up in
/// another order than VDPBF16PS, and all levels compute the same bits.
class AmxTiles {
public:
  static constexpr int64_t rows = 16, columns = 32;

  explicit AmxTiles(KernelBuilder &b) : b(b) {}

  /// Shapes the registers, for all that follows in this kernel; `release` gives them back, which every way out of a
  /// kernel must.
  void configure();
  void release();

  /// i32 [rows][kLanes], valid until the next call: for each row, the sums of the products of its 32 bytes, `stride`
  /// bytes behind those of the row before, and the codes of each output: for each four columns a vector with four
  /// signed bytes in each lane, `codeStride` bytes behind the one before.
  Ptr multiply(Ptr row, int64_t stride, Ptr codes, int64_t codeStride);

private:
  void call(llvm::StringRef instruction, llvm::ArrayRef<Val> operands);

  KernelBuilder &b;
  Ptr sums;
};

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_AMXTILES_H
