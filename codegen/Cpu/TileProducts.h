// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Products of bf16 rows with panels of bf16 weights by tiles of AMX, whose
/// sums stay in registers over all columns.

#ifndef MOEC_CODEGEN_CPU_TILEPRODUCTS_H
#define MOEC_CODEGEN_CPU_TILEPRODUCTS_H

#include "codegen/Common/KernelSpec.h"
#include "codegen/Cpu/AmxTiles.h"

namespace moec::cpu {

/// For a `spec` whose input is BF16, where there is AMX. The order of sums is that of the instruction, over each 32
/// columns, for any number of rows; what is left of fewer columns is added as `KernelBuilder::dotBf16` does.
class TileProducts {
public:
  /// Rows of a full tile; others are powers of two.
  static constexpr int64_t rows = 2 * AmxTiles::mostRows;

  TileProducts(KernelBuilder &b, const GemmSpec &spec) : b(b), spec(spec), amx(b) {}

  /// Whether there are tiles for the spec: of one row as of many, as their sums have an order of their own.
  bool areUsed() const { return b.instructions == Isa::Amx && spec.input == DType::BF16; }

  // Around all tasks of a kernel.
  void begin();
  void end();

  /// Before products of so many rows.
  void configure(int64_t height);

  /// f32 [row][kPanelWidth], valid until the next call: the products of the rows at `inputs` and of a panel.
  Ptr multiply(llvm::ArrayRef<Ptr> inputs, Ptr panel);

private:
  static constexpr int64_t columns = AmxTiles::mostRowBytes / 2; ///< of bf16 in a row of a tile

  KernelBuilder &b;
  const GemmSpec &spec;
  AmxTiles amx;
  llvm::SmallVector<Ptr> configurations; ///< for 1, 2, 4 and so on rows of a register
  Ptr gathered, products;
};

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_TILEPRODUCTS_H
