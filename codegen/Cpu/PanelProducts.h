// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Products of rows with vectors of a panel of weights: the sums over columns
/// of `row[column] * panel[column][lane]`, each in one chain in order of the
/// columns, or of pairs of them.

#ifndef MOEC_CODEGEN_CPU_PANELPRODUCTS_H
#define MOEC_CODEGEN_CPU_PANELPRODUCTS_H

#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// Some vectors of lanes of a panel [columns][kPanelWidth], laid out as `panelColumns(type)` says.
struct PanelVectors {
  Ptr panel;
  DType type;
  int64_t first, width; ///< vectors
  bool prefetched;      ///< whether the panel is one of many that are read once, in order
};

/// `sums` ([row][vector]) and the products over columns [from, to), one after the other. Weights of F8E4M3 are taken as
/// `KernelBuilder::loadAsF32` has them. Types whose columns lie in pairs need columns known here.
Vals columnProducts(KernelBuilder &b, llvm::ArrayRef<Ptr> inputs, DType input, const PanelVectors &weights, Val from,
                    Val to, llvm::ArrayRef<Val> sums);
Vals columnProducts(KernelBuilder &b, llvm::ArrayRef<Ptr> inputs, DType input, const PanelVectors &weights,
                    int64_t columns);

/// The same for rows and weights of bf16, two columns at a time by `KernelBuilder::dotBf16`; a last column without a
/// second one is beside a zero.
Vals pairProducts(KernelBuilder &b, llvm::ArrayRef<Ptr> inputs, const PanelVectors &weights, int64_t columns,
                  llvm::ArrayRef<Val> sums);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_PANELPRODUCTS_H
