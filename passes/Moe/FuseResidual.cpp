// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/Passes.h"

#include "mlir/IR/PatternMatch.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "mlir/Transforms/GreedyPatternRewriteDriver.h"

namespace mlir::moe {

#define GEN_PASS_DEF_FUSERESIDUALPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// The op that makes `term`, if it can add a residual in the place of `add`.
template <typename OpTy> OpTy getAdder(Value term, AddOp add) {
  auto op = term.getDefiningOp<OpTy>();
  if (op && !op.getResidual() && op->hasOneUse() && op->getBlock() == add->getBlock() && op.getType() == add.getType())
    return op;
  return {};
}

/// add(r, linear(x, w))   -> linear(x, w) add r
/// add(r, experts(x, ..)) -> experts(x, ..) add r
struct FuseResidual final : OpRewritePattern<AddOp> {
  FuseResidual(MLIRContext *context, Pass::Statistic &numFused) : OpRewritePattern(context), numFused(numFused) {}

  LogicalResult matchAndRewrite(AddOp add, PatternRewriter &rewriter) const override {
    Value lhs = add.getLhs(), rhs = add.getRhs();
    if (succeeded(fuse<ExpertsOp>(add, lhs, rhs, rewriter)) || succeeded(fuse<ExpertsOp>(add, rhs, lhs, rewriter)) ||
        succeeded(fuse<LinearOp>(add, lhs, rhs, rewriter)) || succeeded(fuse<LinearOp>(add, rhs, lhs, rewriter)))
      return success();
    return rewriter.notifyMatchFailure(
        add, "no operand is a linear or experts of this block without residual and other use");
  }

  template <typename OpTy> LogicalResult fuse(AddOp add, Value residual, Value term, PatternRewriter &rewriter) const {
    OpTy op = getAdder<OpTy>(term, add);
    if (!op)
      return failure();
    // In the place of the sum, where the residual is sure to be there.
    rewriter.moveOpBefore(op, add);
    rewriter.modifyOpInPlace(op, [&] { op.getResidualMutable().assign(residual); });
    rewriter.replaceOp(add, op);
    ++numFused;
    return success();
  }

  Pass::Statistic &numFused;
};

struct FuseResidualPass final : impl::FuseResidualPassBase<FuseResidualPass> {
  void runOnOperation() override {
    RewritePatternSet patterns(&getContext());
    patterns.add<FuseResidual>(&getContext(), numFused);
    // Only fuse: folding is canonicalize's. Top down, sums take their residual in program order.
    GreedyRewriteConfig config;
    config.enableFolding(false).setUseTopDownTraversal().setRegionSimplificationLevel(
        GreedySimplifyRegionLevel::Disabled);
    if (failed(applyPatternsGreedily(getOperation(), std::move(patterns), config)))
      signalPassFailure();
  }
};

} // namespace
} // namespace mlir::moe
