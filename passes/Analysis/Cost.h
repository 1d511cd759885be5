// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What a model's step costs, from the shapes of its ops alone.

#ifndef MOEC_PASSES_ANALYSIS_COST_H
#define MOEC_PASSES_ANALYSIS_COST_H

#include "mlir/IR/Operation.h"
#include "mlir/IR/Value.h"
#include "llvm/ADT/DenseMap.h"

#include <string>

namespace mlir::moe {

/// Multiplications and additions of one head that attends from one token to one entry of the context: the score and
/// the weighted sum (DeepSeek-V2, arXiv:2405.04434, sec. 2.1). `latent`, `rope`, `key` and `value` are channels.
constexpr double absorbedPairFlops(double latent, double rope) { return 4 * latent + 2 * rope; }
constexpr double expandedPairFlops(double key, double rope, double value) { return 2 * (key + rope + value); }

/// The arithmetic of one decode step: one token of one sequence, `context` tokens in its cache, itself included, and
/// its logits. A multiplication and an addition are two operations.
///
/// Products with weights and attention count; norms, rotations, activations, sums and the choice of experts, which are
/// a thousandth of that, do not. Of experts, those that a token is routed to count.
class DecodeCost {
public:
  explicit DecodeCost(int64_t context) : context(static_cast<double>(context)) {}

  /// Of one op of the `moe` dialect; 0 for those that do not count.
  double flops(Operation *op);

private:
  /// Rows of a tensor: one for a token, `context` for what comes from the cache.
  double rows(Value tensor);

  double context;
  DenseMap<Value, double> knownRows;
};

/// The part of the model an op or a weight belongs to, by the name that its importer gave: "layers.3" of
/// "model.layers.3.mlp.act_fn", else the first word, such as "lm_head". Empty without a name.
std::string partOf(StringRef name);
std::string partOf(Operation *op);

} // namespace mlir::moe

#endif // MOEC_PASSES_ANALYSIS_COST_H
