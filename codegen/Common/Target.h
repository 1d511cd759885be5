// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What the lowering to `exec` must know of a target, and nothing more.

#ifndef MOEC_CODEGEN_COMMON_TARGET_H
#define MOEC_CODEGEN_COMMON_TARGET_H

#include "codegen/Common/KernelSpec.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallVector.h"

namespace moec {

/// The defaults are the CPU's.
struct TargetTraits {
  std::string name = "cpu";
  /// Output features side by side in a weight panel.
  int64_t panelWidth = kPanelWidth;
  /// And input features, of a type, that lie together in one.
  int64_t (*panelColumns)(DType) = moec::panelColumns;
  /// Vectors that kernels read whole (norm weights, router biases, cache entries) are padded to a multiple of this.
  int64_t vectorMultiple = 16;
  /// Element types of weights that GEMM and embedding kernels read; others are widened when weights are made.
  llvm::SmallVector<DType> gemmWeights = {DType::F32, DType::BF16, DType::F16, DType::F8E4M3};
  llvm::SmallVector<DType> tables = {DType::F32, DType::BF16, DType::F16};

  /// Codes in groups that GEMM kernels read; other quantized weights are stored as the values they stand for.
  llvm::SmallVector<CodeKind> gemmCodes = {CodeKind::Int4, CodeKind::Int4Zero, CodeKind::Int8, CodeKind::F8E4M3,
                                           CodeKind::F4E2M1};

  bool hasGemm(DType type) const { return llvm::is_contained(gemmWeights, type); }
  bool hasGroups(const GroupFormat &format) const { return llvm::is_contained(gemmCodes, format.codes); }
  bool hasTable(DType type) const { return llvm::is_contained(tables, type); }
};

} // namespace moec

#endif // MOEC_CODEGEN_COMMON_TARGET_H
