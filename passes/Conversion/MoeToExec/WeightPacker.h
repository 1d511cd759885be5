// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Turns `moe.weight` into `exec.weight`: the same tensor, packed as its
/// consumer reads it.

#ifndef MOEC_PASSES_CONVERSION_MOETOEXEC_WEIGHTPACKER_H
#define MOEC_PASSES_CONVERSION_MOETOEXEC_WEIGHTPACKER_H

#include "codegen/Common/Target.h"
#include "dialects/Exec/ExecDialect.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/StringSet.h"

namespace mlir::exec {

/// Symbols of one module: gives each name once.
class SymbolNames {
public:
  /// `name`, or with `separator` and the first free number from 2.
  std::string claim(const std::string &name, llvm::StringRef separator);

private:
  llvm::StringSet<> taken;
};

class WeightPacker {
public:
  /// Creates ops at the insertion point of `builder`.
  WeightPacker(const moec::TargetTraits &target, SymbolNames &names, OpBuilder builder)
      : target(target), names(names), builder(builder) {}

  /// What a GEMM reads: panels `[B, panels, K, width]` and, where FP8 blocks
  /// stay FP8, scales `[B, panels, ceil(K / scaleCols), width]`; or codes and scales in groups, as `pack_groups` has
  /// them.
  struct Panels {
    WeightOp weight;
    WeightOp scales;
    moec::DType type = moec::DType::F32;
    int64_t scaleCols = 0;
    int64_t group = 0; ///< columns; 0: not in groups
    moec::CodeKind codes = moec::CodeKind::Int4;
    moec::DType groupScale = moec::DType::F16;
  };

  /// One tensor `[(B,) N, K]`, or two of one shape (gate, up) that share panels.
  FailureOr<Panels> panels(Operation *user, ValueRange tensors);
  /// A tensor `[B, N, K]` of several that come from one source; `suffix` tells
  /// them apart by name. With `transposed` it is `[B, K, N]` in `moe`.
  FailureOr<Panels> headPanels(Operation *user, Value tensor, StringRef suffix, bool transposed);
  /// f32, padded with zeros to what kernels read whole.
  FailureOr<WeightOp> vector(Operation *user, Value tensor);
  /// Rows `[V, D]` as they are; `type` is set to their elements.
  FailureOr<WeightOp> table(Operation *user, Value tensor, moec::DType &type);

  int64_t size() const { return static_cast<int64_t>(weights.size()); }

private:
  WeightOp getOrCreate(Location loc, const std::string &name, ArrayRef<Attribute> sources, ArrayRef<Attribute> recipe,
                       ArrayRef<int64_t> shape, Type element);
  FailureOr<Panels> pack(Operation *user, ValueRange tensors, StringRef suffix, bool transposed);

  const moec::TargetTraits &target;
  SymbolNames &names;
  OpBuilder builder;
  /// By [sources, recipe, type].
  DenseMap<Attribute, WeightOp> weights;
};

} // namespace mlir::exec

#endif // MOEC_PASSES_CONVERSION_MOETOEXEC_WEIGHTPACKER_H
