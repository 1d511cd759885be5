// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What passes that change launches share: the specs behind them, and kernels for new ones.

#ifndef MOEC_PASSES_EXEC_LAUNCHES_H
#define MOEC_PASSES_EXEC_LAUNCHES_H

#include "codegen/Common/KernelSpec.h"
#include "dialects/Exec/ExecDialect.h"

#include "mlir/IR/BuiltinOps.h"

namespace mlir::exec {

/// The kernels of a module.
class Kernels {
public:
  explicit Kernels(ModuleOp module) : module(module) {}

  /// Fails with a diagnostic if the launch's kernel has no valid spec.
  FailureOr<moec::KernelSpec> specOf(LaunchOp launch);
  /// Whether all activations are left as they are, so that calibration may watch the program run: it looks for a
  /// `route` and a `combine` by their kind, to read and to change what they wrote.
  FailureOr<bool> mayBeWatched();
  /// Launches, where `builder` is, a kernel of `spec` instead of `launches`, whose labels and places it has; one kernel
  /// for all such launches of one spec, put before that of the first.
  LaunchOp launch(OpBuilder &builder, const moec::KernelSpec &spec, ValueRange args, ArrayRef<LaunchOp> launches);
  /// The same where the first of `launches` is, with the arguments of all of them, then `more`, and in the steps that
  /// the first one runs in; erases `launches`.
  void replace(ArrayRef<LaunchOp> launches, const moec::KernelSpec &spec, ValueRange more = {});
  /// Calls `rewrite` for each program; then erases kernels that no launch is left of, unless one failed.
  LogicalResult rewritePrograms(llvm::function_ref<LogicalResult(ProgramOp)> rewrite);

private:
  ModuleOp module;
  DenseMap<Attribute, KernelOp> made; ///< by kind and spec
};

/// The buffer, weight, cache or input of the step that an argument is a view of.
Value sourceOf(Value arg);

/// Moves all that is no launch before the launches, so that these may move.
void moveMemoryUp(ProgramOp program);

} // namespace mlir::exec

#endif // MOEC_PASSES_EXEC_LAUNCHES_H
