// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Runs a module of `moe` ops, before or after any pass, on given inputs, op
/// by op with the functions of Reference.h.

#ifndef MOEC_DIALECTS_MOE_REFERENCE_INTERPRETER_H
#define MOEC_DIALECTS_MOE_REFERENCE_INTERPRETER_H

#include "dialects/Formats/Feedback.h"
#include "dialects/Moe/Reference/Reference.h"
#include "runtime/Support/TensorSource.h"

#include "mlir/IR/BuiltinOps.h"

#include <functional>
#include <memory>
#include <variant>
#include <vector>

namespace mlir::moe {

/// What a value is while a function runs. A float tensor of any precision is shown as double, which holds it exactly.
using ReferenceValue = std::variant<reference::Tensor<double>, reference::IndexTensor>;

struct InterpreterOptions {
  enum class Precision { F32, F64 };
  /// The type of activations and arithmetic.
  Precision precision = Precision::F32;
  /// A weight is evaluated for each op that uses it and then dropped, so that memory is bounded by the largest op.
  /// Weights are kept for the next step instead while they fit into this many bytes together.
  uint64_t keepWeightBytes = 0;
  /// What a calibration found, for weights that are rounded by it; or null. Must outlive the interpreter.
  const moec::MomentSource *moments = nullptr;
};

/// Interprets the functions of one module. Its caches live from call to call, so that a sequence may be given in any
/// number of steps.
///
/// A function is one block of `moe` ops and `func.return`; another op fails with a diagnostic that names it.
/// Everything that the types leave open is checked as the op runs: sizes that must agree, indices in range, results
/// that fit their types, weights that are what their types say. Failures are diagnostics at the op and leave the
/// caches as far as the ops before it brought them.
///
/// Not thread-safe. The module and the weights must outlive it.
class Interpreter {
public:
  /// Told of each op that has run, in order, with its results; not of `moe.weight`, which runs as part of its users.
  using Observer = std::function<void(Operation *, ArrayRef<ReferenceValue>)>;

  Interpreter(ModuleOp module, const moec::TensorSource &weights, InterpreterOptions options = {});
  ~Interpreter();

  void setObserver(Observer observer);
  /// Empties every cache.
  void reset();

  /// Calls the function `name` and gives what it returns.
  FailureOr<std::vector<ReferenceValue>> call(StringRef name, std::vector<ReferenceValue> arguments);

  /// One step: the logits [R, V] of `rows` after token `tokens[t]` of sequence `slots[t]` at `positions[t]`, for all t.
  /// The first three have one length; no value may be negative; each row is an index into them; the positions of a
  /// slot have no gap over all steps since `reset`. A position that is given again replaces the entry.
  FailureOr<reference::Tensor<double>> run(ArrayRef<int32_t> tokens, ArrayRef<int32_t> positions,
                                           ArrayRef<int32_t> slots, ArrayRef<int32_t> rows);

  /// What is behind it, in one precision.
  class Machine;

private:
  ModuleOp module;
  std::unique_ptr<Machine> machine;
};

} // namespace mlir::moe

#endif // MOEC_DIALECTS_MOE_REFERENCE_INTERPRETER_H
