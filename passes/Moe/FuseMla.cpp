// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/Fusion.h"
#include "passes/Moe/Passes.h"

#include "mlir/IR/PatternMatch.h"
#include "mlir/Interfaces/FunctionInterfaces.h"

namespace mlir::moe {

#define GEN_PASS_DEF_FUSEMLAPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// Whether `op` may read or write `cache`. Unknown effects may do anything.
bool mayTouch(Operation &op, FlatSymbolRefAttr cache) {
  std::optional<SmallVector<MemoryEffects::EffectInstance>> effects = getEffectsRecursively(&op);
  if (!effects)
    return true;
  return llvm::any_of(*effects, [&](const MemoryEffects::EffectInstance &effect) {
    return isa<CacheResource>(effect.getResource()) && (!effect.getSymbolRef() || effect.getSymbolRef() == cache);
  });
}

/// `kv_b` with one more step: rows [begin, end) of each head.
Value headRows(WeightOp kvB, int64_t heads, int64_t begin, int64_t end, PatternRewriter &rewriter) {
  SmallVector<Attribute> recipe(kvB.getRecipe().getValue());
  recipe.push_back(HeadRowsAttr::get(rewriter.getContext(), heads, begin, end));
  auto type = kvB.getType();
  auto cut = RankedTensorType::get({heads, end - begin, type.getDimSize(1)}, type.getElementType());
  return WeightOp::create(rewriter, kvB.getLoc(), cut, kvB.getSources(), rewriter.getArrayAttr(recipe));
}

/// attention(qn, qr; split(reshape(linear(C, kv_b))), KR) over (C, KR, ..) = cache_append(c, kr)
///   -> mla_attention(qn, qr; c, kr; head_rows(kv_b), head_rows(kv_b))
struct FuseMla final : OpRewritePattern<AttentionOp> {
  FuseMla(MLIRContext *context, Pass::Statistic &numFused) : OpRewritePattern(context), numFused(numFused) {}

  LogicalResult matchAndRewrite(AttentionOp op, PatternRewriter &rewriter) const override {
    auto append = op.getContextPositions().getDefiningOp<CacheAppendOp>();
    if (!append || op.getContextPositions() != append.getContextPositions() ||
        op.getContextSlots() != append.getContextSlots())
      return rewriter.notifyMatchFailure(op, "context is not that of one cache_append");
    if (append.getContext().size() != 2)
      return rewriter.notifyMatchFailure(op, "cache entry is not a latent and a rope key");
    if (op.getPositions() != append.getPositions() || op.getSlots() != append.getSlots())
      return rewriter.notifyMatchFailure(op, "queries are not the tokens that are appended");
    Value latents = append.getContext()[0];
    if (op.getRopeKey() != append.getContext()[1])
      return rewriter.notifyMatchFailure(op, "rope key is not the second part of the context");

    auto split = op.getKey().getDefiningOp<SplitOp>();
    if (!split || split.getParts().size() != 2 || op.getKey() != split.getParts()[0] ||
        op.getValue() != split.getParts()[1])
      return rewriter.notifyMatchFailure(op, "key and value are not the two parts of one split");
    auto reshape = split.getX().getDefiningOp<ReshapeOp>();
    if (!reshape || reshape.getX().getType().getRank() != 2)
      return rewriter.notifyMatchFailure(op, "key and value are not cut from the heads of a matrix");
    auto linear = reshape.getX().getDefiningOp<LinearOp>();
    if (!linear || linear.getX() != latents || linear.getResidual())
      return rewriter.notifyMatchFailure(op, "key and value are not a projection of the latents");
    auto kvB = linear.getWeight().getDefiningOp<WeightOp>();
    if (!kvB)
      return rewriter.notifyMatchFailure(op, "up-projection is not a moe.weight");

    if (!llvm::all_of(append->getResults(), [](Value result) { return result.hasOneUse(); }) || !linear->hasOneUse() ||
        !reshape->hasOneUse() || !llvm::all_of(split.getParts(), [](Value part) { return part.hasOneUse(); }))
      return rewriter.notifyMatchFailure(op, "context, keys or values have another use");
    // The entries will be stored where the attention is: nothing in between may see the difference.
    if (append->getBlock() != op->getBlock())
      return rewriter.notifyMatchFailure(op, "cache_append is in another block");
    for (Operation *between = append->getNextNode(); between != op; between = between->getNextNode())
      if (mayTouch(*between, append.getCacheAttr()))
        return rewriter.notifyMatchFailure(op, "cache may be touched between cache_append and attention");

    int64_t heads = op.getKey().getType().getDimSize(1);
    int64_t keyRows = op.getKey().getType().getDimSize(2), valueRows = op.getValue().getType().getDimSize(2);
    rewriter.setInsertionPointAfter(kvB);
    Value wUk = headRows(kvB, heads, 0, keyRows, rewriter);
    Value wUv = headRows(kvB, heads, keyRows, keyRows + valueRows, rewriter);
    rewriter.setInsertionPoint(op);
    rewriter.replaceOpWithNewOp<MlaAttentionOp>(op, op.getType(), append.getCacheAttr(), op.getQuery(),
                                                op.getRopeQuery(), append.getParts()[0], append.getParts()[1], wUk, wUv,
                                                op.getPositions(), op.getSlots(), op.getScaleAttr(),
                                                /*expanded_from=*/IntegerAttr());
    // cache_append stores, so no driver takes it for dead.
    for (Operation *dead : {split.getOperation(), reshape.getOperation(), linear.getOperation(), append.getOperation()})
      rewriter.eraseOp(dead);
    ++numFused;
    return success();
  }

  Pass::Statistic &numFused;
};

struct FuseMlaPass final : impl::FuseMlaPassBase<FuseMlaPass> {
  void runOnOperation() override {
    RewritePatternSet patterns(&getContext());
    patterns.add<FuseMla>(&getContext(), numFused);
    if (failed(applyFusions(getOperation(), std::move(patterns), getArgument())))
      signalPassFailure();
  }
};

} // namespace
} // namespace mlir::moe
