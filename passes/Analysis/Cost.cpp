// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Analysis/Cost.h"

#include "dialects/Moe/MoeDialect.h"

#include "mlir/IR/Location.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace mlir::moe;

namespace {

double dim(Value tensor, unsigned index) {
  return static_cast<double>(cast<RankedTensorType>(tensor.getType()).getDimSize(index));
}

/// Elements of one weight, or of all experts together.
double elements(Value weight) { return static_cast<double>(cast<RankedTensorType>(weight.getType()).getNumElements()); }

} // namespace

double DecodeCost::rows(Value tensor) {
  Operation *op = tensor.getDefiningOp();
  if (!op) // of the step function: tokens, or the one whose logits are asked for
    return 1;
  if (auto known = knownRows.find(tensor); known != knownRows.end())
    return known->second;
  double result = TypeSwitch<Operation *, double>(op)
                      .Case([&](CacheAppendOp) { return context; })
                      .Case([&](EmbedOp op) { return rows(op.getTokens()); })
                      .Case([&](GatherRowsOp op) { return rows(op.getRows()); })
                      // Every other op makes a row of each row of its first operand.
                      .Default([&](Operation *op) { return op->getNumOperands() ? rows(op->getOperand(0)) : 1; });
  knownRows[tensor] = result;
  return result;
}

double DecodeCost::flops(Operation *op) {
  return TypeSwitch<Operation *, double>(op)
      .Case([&](LinearOp op) { return 2 * elements(op.getWeight()) * rows(op.getX()); })
      .Case([&](GateUpOp op) { return 2 * (elements(op.getGate()) + elements(op.getUp())) * rows(op.getX()); })
      .Case([&](ExpertsOp op) {
        double all = elements(op.getGate()) + elements(op.getUp()) + elements(op.getDown());
        // Of the choices, those of members: as many as their share of the experts.
        double share = 1;
        if (auto route = op.getExperts().getDefiningOp<RouteOp>(); route && op.getMembers())
          share = static_cast<double>(dim(op.getGate(), 0)) / dim(route.getLogits(), 1);
        double taken = dim(op.getExperts(), 1) * share + static_cast<double>(op.getShared());
        return 2 * all / dim(op.getGate(), 0) * taken * rows(op.getX());
      })
      .Case([&](AttentionOp op) {
        double pair = expandedPairFlops(dim(op.getQuery(), 2), dim(op.getRopeQuery(), 2), dim(op.getValue(), 2));
        return rows(op.getQuery()) * dim(op.getQuery(), 1) * context * pair;
      })
      .Case([&](MlaAttentionOp op) {
        // A decode step brings one token.
        if (op.getExpandedFrom() == 1u)
          return rows(op.getQuery()) * context *
                 (dim(op.getQuery(), 1) *
                      expandedPairFlops(dim(op.getQuery(), 2), dim(op.getRopeKey(), 1), dim(op.getResult(), 2)) +
                  2 * (elements(op.getWUk()) + elements(op.getWUv())));
        double pair = absorbedPairFlops(dim(op.getLatent(), 1), dim(op.getRopeKey(), 1));
        return rows(op.getQuery()) *
               (dim(op.getQuery(), 1) * context * pair + 2 * (elements(op.getWUk()) + elements(op.getWUv())));
      })
      .Default(0.0);
}

std::string moe::partOf(StringRef name) {
  name.consume_front("model.");
  auto [first, rest] = name.split('.');
  if (first == "layers" && !rest.empty())
    return name.substr(0, first.size() + 1 + rest.split('.').first.size()).str();
  return first.str();
}

std::string moe::partOf(Operation *op) {
  auto name = op->getLoc()->findInstanceOf<NameLoc>();
  return name ? partOf(name.getName().getValue()) : "";
}
