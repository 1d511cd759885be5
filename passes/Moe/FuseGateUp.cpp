// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/Fusion.h"
#include "passes/Moe/Passes.h"

#include "mlir/IR/PatternMatch.h"
#include "mlir/Interfaces/FunctionInterfaces.h"

namespace mlir::moe {

#define GEN_PASS_DEF_FUSEGATEUPPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// How a linear's weight is made, which must be one way for both; null if it is no weight of the checkpoint.
ArrayAttr recipeOf(LinearOp linear) {
  auto weight = linear.getWeight().getDefiningOp<WeightOp>();
  return weight ? weight.getRecipe() : ArrayAttr();
}

/// swiglu(linear(x, gate), linear(x, up)) -> gate_up(x, gate, up)
struct FuseGateUp final : OpRewritePattern<SwigluOp> {
  FuseGateUp(MLIRContext *context, Pass::Statistic &numFused) : OpRewritePattern(context), numFused(numFused) {}

  LogicalResult matchAndRewrite(SwigluOp op, PatternRewriter &rewriter) const override {
    auto gate = op.getGate().getDefiningOp<LinearOp>(), up = op.getUp().getDefiningOp<LinearOp>();
    if (!gate || !up)
      return rewriter.notifyMatchFailure(op, "gate or up is not a linear");
    if (gate.getX() != up.getX())
      return rewriter.notifyMatchFailure(op, "gate and up read different inputs");
    if (gate.getResidual() || up.getResidual())
      return rewriter.notifyMatchFailure(op, "gate or up adds a residual");
    if (gate.getWeight().getType() != up.getWeight().getType())
      return rewriter.notifyMatchFailure(op, "gate and up weights differ in type");
    if (recipeOf(gate) != recipeOf(up))
      return rewriter.notifyMatchFailure(op, "gate and up weights are stored differently");
    if (!gate->hasOneUse() || !up->hasOneUse())
      return rewriter.notifyMatchFailure(op, "gate or up has another use");
    rewriter.replaceOpWithNewOp<GateUpOp>(op, op.getType(), gate.getX(), gate.getWeight(), up.getWeight());
    rewriter.eraseOp(gate);
    rewriter.eraseOp(up);
    ++numFused;
    return success();
  }

  Pass::Statistic &numFused;
};

struct FuseGateUpPass final : impl::FuseGateUpPassBase<FuseGateUpPass> {
  void runOnOperation() override {
    RewritePatternSet patterns(&getContext());
    patterns.add<FuseGateUp>(&getContext(), numFused);
    if (failed(applyFusions(getOperation(), std::move(patterns), getArgument())))
      signalPassFailure();
  }
};

} // namespace
} // namespace mlir::moe
