// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Products of rows of codes and panels of codes: integers over each 32 columns, f32 beyond.

#ifndef MOEC_CODEGEN_CPU_CODEPRODUCTS_H
#define MOEC_CODEGEN_CPU_CODEPRODUCTS_H

#include "codegen/Common/KernelSpec.h"
#include "codegen/Cpu/AmxTiles.h"
#include "codegen/Cpu/Compile.h"
#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// For a `spec` whose input is U8: rows as QuantizeRowsSpec writes them, weights as `#moe.pack_groups` has them.
class CodeProducts {
public:
  CodeProducts(KernelBuilder &b, const GemmSpec &spec, const Tiles &tiles);

  // Around all tasks of a kernel.
  void begin();
  void end();

  /// [row][v]: the products of each row and vectors `first` to `first + width` of the panel's outputs. One chain in
  /// order of blocks of 32 columns, each with the sum of its products, exact, times both scales.
  Vals sums(llvm::ArrayRef<Ptr> inputs, Ptr panel, int64_t first, int64_t width);

private:
  /// What all columns of a group share, for each vector of outputs.
  struct Group {
    Vals scale, zero; ///< f32; i32, if there are zero points
  };

  /// The codes of two words of columns that lie in one, unsigned, as they are multiplied.
  std::pair<Val, Val> codesOf(Val nibbles) const;
  bool usesAmx() const { return b.instructions == Isa::Amx && spec.input == DType::U8; }
  /// What makes up for codes that are stored plus something, in vector `v` of the products of a block of a row.
  Val startOf(Ptr record, const Group &group, int64_t v);
  /// `totals` ([row][v]) and the products of block `index`, whose codes lie at `codes`.
  Vals addBlock(llvm::ArrayRef<Ptr> inputs, Ptr codes, Val index, int64_t first, const Group &group, Vals totals);
  /// The same for a full tile of AMX, one vector wide.
  Vals addBlockByAmx(llvm::ArrayRef<Ptr> inputs, Ptr codes, Val index, int64_t first, const Group &group, Vals totals);

  KernelBuilder &b;
  const GemmSpec &spec;
  const Tiles &tiles;
  GroupFormat format; ///< of the weights
  AmxTiles amx;
  Ptr unpacked, gathered, products; ///< for a tile of codes, of rows, and of sums
};

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_CODEPRODUCTS_H
