// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/Fusion.h"
#include "passes/Moe/Passes.h"

#include "mlir/IR/PatternMatch.h"
#include "mlir/Interfaces/FunctionInterfaces.h"

namespace mlir::moe {

#define GEN_PASS_DEF_FUSERESIDUALPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// Why `op` cannot add a residual in the place of `add`; empty if it can.
template <typename OpTy> StringRef obstacle(OpTy op, AddOp add) {
  if (op.getResidual())
    return "adds a residual already";
  if (!op->hasOneUse())
    return "has another use";
  if (op->getBlock() != add->getBlock())
    return "is in another block";
  if (op.getType() != add.getType())
    return "has another type";
  return "";
}

/// add(r, linear(x, w))   -> linear(x, w) add r
/// add(r, experts(x, ..)) -> experts(x, ..) add r
struct FuseResidual final : OpRewritePattern<AddOp> {
  FuseResidual(MLIRContext *context, Pass::Statistic &numFused) : OpRewritePattern(context), numFused(numFused) {}

  LogicalResult matchAndRewrite(AddOp add, PatternRewriter &rewriter) const override {
    Value lhs = add.getLhs(), rhs = add.getRhs();
    std::string reason;
    if (succeeded(fuse<ExpertsOp>(add, lhs, rhs, rewriter, reason)) ||
        succeeded(fuse<ExpertsOp>(add, rhs, lhs, rewriter, reason)) ||
        succeeded(fuse<LinearOp>(add, lhs, rhs, rewriter, reason)) ||
        succeeded(fuse<LinearOp>(add, rhs, lhs, rewriter, reason)))
      return success();
    return rewriter.notifyMatchFailure(add, reason.empty() ? "no operand is a linear or experts" : reason);
  }

  /// Adds to `reason` why `term`, if it comes from an `OpTy`, cannot add `residual`.
  template <typename OpTy>
  LogicalResult fuse(AddOp add, Value residual, Value term, PatternRewriter &rewriter, std::string &reason) const {
    auto op = term.getDefiningOp<OpTy>();
    if (!op)
      return failure();
    if (StringRef why = obstacle(op, add); !why.empty()) {
      reason += (reason.empty() ? "" : ", ") + OpTy::getOperationName().str() + " " + why.str();
      return failure();
    }
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
    // Top down, sums take their residual in program order.
    if (failed(applyFusions(getOperation(), std::move(patterns), getArgument(), Traversal::TopDown)))
      signalPassFailure();
  }
};

} // namespace
} // namespace mlir::moe
