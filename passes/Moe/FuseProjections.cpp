// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/Fusion.h"
#include "passes/Moe/Passes.h"

#include "mlir/IR/PatternMatch.h"
#include "mlir/Interfaces/FunctionInterfaces.h"

#include <algorithm>
#include <numeric>

namespace mlir::moe {

#define GEN_PASS_DEF_FUSEPROJECTIONSPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// Why `op` cannot be joined with others that read its input; empty if it can.
StringRef obstacle(LinearOp op) {
  auto weight = op.getWeight().getDefiningOp<WeightOp>();
  if (!weight)
    return "has no weight of the checkpoint";
  if (!weight->hasOneUse())
    return "has a weight with another use";
  if (op.getResidual())
    return "adds a residual";
  for (Operation *user : op->getUsers()) {
    if (isa<RouteOp>(user))
      return "gives scores to a router";
    if (isa<AddOp>(user))
      return "may add a residual";
    if (user->hasTrait<OpTrait::IsTerminator>())
      return "gives a result of the function";
  }
  return "";
}

/// Rows of the FP8 blocks that a weight is stored in and can stay in; 1 for others.
int64_t rowsOfBlocks(WeightOp weight) {
  ArrayRef<Attribute> recipe = weight.getRecipe().getValue();
  auto stored = recipe.size() == 1 ? dyn_cast<DequantAttr>(recipe[0]) : DequantAttr();
  return stored && stored.getFormat() == StoredFormat::Fp8 ? std::max<int64_t>(stored.getRows(), 1) : 1;
}

/// Did this pass make `op`?
bool isJoined(LinearOp op) {
  auto weight = op.getWeight().getDefiningOp<WeightOp>();
  return weight && !weight.getRecipe().empty() && isa<ConcatAttr>(*std::prev(weight.getRecipe().end()));
}

/// linear(x, a), linear(x, b), .. -> split(linear(x, [a; b; ..]))
struct FuseProjections final : OpRewritePattern<LinearOp> {
  FuseProjections(MLIRContext *context, Pass::Statistic &numFused) : OpRewritePattern(context), numFused(numFused) {}

  LogicalResult matchAndRewrite(LinearOp op, PatternRewriter &rewriter) const override {
    SmallVector<LinearOp> readers = readersOf(op.getX(), op->getBlock());
    if (readers.size() < 2 || isJoined(op)) // nothing was missed
      return failure();
    if (StringRef why = obstacle(op); !why.empty())
      return rewriter.notifyMatchFailure(op, why);
    auto first = op.getWeight().getDefiningOp<WeightOp>();
    int64_t block = rowsOfBlocks(first);
    SmallVector<LinearOp> parts;
    LinearOp last; // the one whose rows are no whole blocks
    for (LinearOp other : readers) {
      auto weight = other.getWeight().getDefiningOp<WeightOp>();
      if (!obstacle(other).empty() || weight.getRecipe() != first.getRecipe() || elementOf(weight) != elementOf(first))
        continue;
      if (rowsOf(other) % block == 0)
        parts.push_back(other);
      else if (!last)
        last = other;
    }
    if (last)
      parts.push_back(last);
    if (!llvm::is_contained(parts, op))
      return rewriter.notifyMatchFailure(op, "has a last block of FP8 rows that is not whole, as another has");
    if (parts.size() < 2)
      return rewriter.notifyMatchFailure(op, "no other projection of its input is stored as it is");
    join(parts, rewriter);
    return success();
  }

private:
  static Type elementOf(WeightOp weight) { return cast<RankedTensorType>(weight.getType()).getElementType(); }
  static int64_t rowsOf(LinearOp op) { return cast<RankedTensorType>(op.getWeight().getType()).getDimSize(0); }

  /// Those in `block`, in its order.
  static SmallVector<LinearOp> readersOf(Value x, Block *block) {
    SmallVector<LinearOp> readers;
    for (OpOperand &use : x.getUses())
      if (auto linear = dyn_cast<LinearOp>(use.getOwner()))
        if (linear->getBlock() == block && &linear.getXMutable() == &use)
          readers.push_back(linear);
    llvm::sort(readers, [](LinearOp a, LinearOp b) { return a->isBeforeInBlock(b); });
    return readers;
  }

  void join(ArrayRef<LinearOp> parts, PatternRewriter &rewriter) const {
    SmallVector<Location> locs;
    SmallVector<Attribute> sources;
    SmallVector<int64_t> rows;
    SmallVector<Type> types;
    LinearOp head = parts.front(), earliest = head;
    for (LinearOp part : parts) {
      locs.push_back(part.getLoc());
      llvm::append_range(sources, part.getWeight().getDefiningOp<WeightOp>().getSources());
      rows.push_back(rowsOf(part));
      types.push_back(part.getType());
      if (part->isBeforeInBlock(earliest))
        earliest = part;
    }
    auto first = head.getWeight().getDefiningOp<WeightOp>();
    SmallVector<Attribute> recipe(first.getRecipe().getValue());
    recipe.push_back(ConcatAttr::get(rewriter.getContext(), rows));
    int64_t all = std::accumulate(rows.begin(), rows.end(), int64_t(0));
    auto weightType = cast<RankedTensorType>(first.getType());
    auto type = cast<RankedTensorType>(head.getType());

    rewriter.setInsertionPoint(earliest);
    Location loc = rewriter.getFusedLoc(locs);
    auto weight = WeightOp::create(rewriter, first.getLoc(), weightType.clone({all, weightType.getDimSize(1)}),
                                   rewriter.getArrayAttr(sources), rewriter.getArrayAttr(recipe));
    auto linear = LinearOp::create(rewriter, loc, type.clone({type.getDimSize(0), all}), earliest.getX(), weight,
                                   /*residual=*/Value());
    auto split = SplitOp::create(rewriter, loc, types, linear);
    for (auto [index, part] : llvm::enumerate(parts)) {
      Operation *unread = LinearOp(part).getWeight().getDefiningOp();
      rewriter.replaceOp(part, split.getParts()[index]);
      rewriter.eraseOp(unread);
    }
    numFused += parts.size();
  }

  Pass::Statistic &numFused;
};

struct FuseProjectionsPass final : impl::FuseProjectionsPassBase<FuseProjectionsPass> {
  void runOnOperation() override {
    RewritePatternSet patterns(&getContext());
    patterns.add<FuseProjections>(&getContext(), numFused);
    // Top down, a projection is joined where the first of its kind is.
    if (failed(applyFusions(getOperation(), std::move(patterns), getArgument(), Traversal::TopDown)))
      signalPassFailure();
  }
};

} // namespace
} // namespace mlir::moe
