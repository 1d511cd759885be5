// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"
#include "passes/Moe/Fusion.h"
#include "passes/Moe/Passes.h"
#include "passes/Moe/ProjectionFormats.h"
#include "runtime/Support/Text.h"

#include "mlir/IR/Builders.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "llvm/ADT/TypeSwitch.h"

namespace mlir::moe {

#define GEN_PASS_DEF_FOLDNORMPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// The tensor of the checkpoint that the norm multiplies by; null if that is made in some way.
StringAttr vectorOf(RmsNormOp norm) {
  auto weight = norm.getWeight().getDefiningOp<WeightOp>();
  auto widens = [](Attribute step) {
    auto cast = dyn_cast<CastAttr>(step);
    return cast && cast.getType().isF32();
  };
  if (!weight || weight.getSources().size() != 1 || !llvm::all_of(weight.getRecipe(), widens))
    return nullptr;
  auto name = cast<StringAttr>(weight.getSources()[0]);
  return isFamily(name) ? nullptr : name;
}

struct FoldNormPass final : impl::FoldNormPassBase<FoldNormPass> {
  using Base::Base;

  void runOnOperation() override {
    moec::Result<ProjectionFormats> parsed =
        ProjectionFormats::parse(experts, attention, dense, head, overrides, rounding);
    if (!parsed) {
      getOperation().emitError() << parsed.message();
      return signalPassFailure();
    }
    formats = std::move(*parsed);
    SmallVector<RmsNormOp> norms;
    getOperation().walk([&](RmsNormOp norm) {
      if (norm.getWeight() && !norm->use_empty())
        norms.push_back(norm);
    });
    for (RmsNormOp norm : norms)
      visit(norm);
  }

private:
  void visit(RmsNormOp norm) {
    StringRef obstacle;
    StringAttr by = vectorOf(norm);
    if (!by)
      obstacle = "has a weight that is no tensor of the checkpoint by itself";
    SmallVector<OpOperand *> weights;
    for (OpOperand &use : norm->getUses())
      if (obstacle.empty())
        obstacle = collect(use, weights);
    if (!obstacle.empty())
      return remarkFusion(getOperation(), norm.getLoc(), getArgument(), /*fused=*/false, obstacle);
    fold(norm, by, weights);
    remarkFusion(getOperation(), norm.getLoc(), getArgument(), /*fused=*/true,
                 "into " + Twine(weights.size()) + (weights.size() == 1 ? " weight" : " weights"));
  }

  /// The weights that multiply what `use` reads, into `weights`; or why they cannot be scaled.
  StringRef collect(OpOperand &use, SmallVector<OpOperand *> &weights) {
    Role role = Role::Dense;
    SmallVector<OpOperand *> operands;
    bool isInput = TypeSwitch<Operation *, bool>(use.getOwner())
                       .Case([&](LinearOp op) {
                         role = roleOf(op);
                         operands = {&op.getWeightMutable()};
                         return &op.getXMutable() == &use;
                       })
                       .Case([&](GateUpOp op) {
                         operands = {&op.getGateMutable(), &op.getUpMutable()};
                         return true;
                       })
                       .Case([&](ExpertsOp op) {
                         role = Role::Experts;
                         operands = {&op.getGateMutable(), &op.getUpMutable()};
                         return &op.getXMutable() == &use;
                       })
                       .Default(false);
    if (!isInput)
      return "has a reader that is no projection";
    for (OpOperand *operand : operands) {
      auto weight = operand->get().getDefiningOp<WeightOp>();
      if (!weight)
        return "has a reader without a weight of the checkpoint";
      StringRef name = cast<StringAttr>(weight.getSources()[0]);
      // Members of a family may be asked for in several formats.
      StackAttr stack = isFamily(name) ? stackOf(weight.getRecipe()) : nullptr;
      for (int64_t i = 0; i < (stack ? stack.getCount() : 1); ++i) {
        StringRef obstacle =
            obstacleOf(weight, role, formats.of(role, stack ? memberOf(name, stack.memberAt(i)) : name));
        if (!obstacle.empty())
          return obstacle;
      }
      weights.push_back(operand);
    }
    return "";
  }

  /// Why `weight`, in the format asked for, would not hold its product with a norm's weight as exactly as itself.
  StringRef obstacleOf(WeightOp weight, Role role, const WeightFormat &format) {
    auto type = cast<RankedTensorType>(weight.getType());
    ArrayRef<Attribute> recipe = weight.getRecipe().getValue();
    auto stored = recipe.empty() ? nullptr : dyn_cast<DequantAttr>(recipe.front());
    if (llvm::any_of(recipe, llvm::IsaPred<QuantizeAttr>))
      return "has a reader whose weight is rounded before";
    Attribute step = format.step(&getContext(), type.getShape().back(), formats.rounding);
    if (auto quantize = dyn_cast_or_null<QuantizeAttr>(step)) {
      if (quantize.getRounding() != Rounding::Nearest)
        return "has a reader whose weight is rounded by a calibration, which knows the input as it was";
      if (stored && stored.getBits() <= quantize.getFormat().bits())
        return "has a reader whose weight is quantized in the checkpoint, to no more bits than asked for";
      return "";
    }
    if (auto cast = dyn_cast_or_null<CastAttr>(step))
      return cast.getType().isF32() ? "" : "has a reader whose weight is cast to 16 bits, too few for products";
    if (stored)
      return "has a reader whose weight keeps the codes of the checkpoint";
    Type element = type.getElementType();
    // A router is small: widened it costs little.
    if (element.isF32() || (role == Role::Router && isa<BFloat16Type, Float16Type>(element)))
      return "";
    return "has a reader whose weight is kept in fewer bits than products need";
  }

  void fold(RmsNormOp norm, StringAttr by, ArrayRef<OpOperand *> weights) {
    Operation *unscaled = norm.getWeight().getDefiningOp();
    DenseMap<WeightOp, WeightOp> scaled;
    for (OpOperand *operand : weights) {
      auto weight = operand->get().getDefiningOp<WeightOp>();
      WeightOp &product = scaled[weight];
      if (!product) {
        OpBuilder builder(weight);
        SmallVector<Attribute> recipe(weight.getRecipe().getValue());
        recipe.push_back(ScaleColumnsAttr::get(&getContext(), by));
        product = WeightOp::create(builder, weight.getLoc(),
                                   cast<RankedTensorType>(weight.getType()).clone(builder.getF32Type()),
                                   weight.getSources(), builder.getArrayAttr(recipe));
        ++numScaled;
      }
      operand->set(product);
    }
    norm.getWeightMutable().clear();
    if (unscaled->use_empty())
      unscaled->erase();
    for (auto [weight, product] : scaled)
      if (weight->use_empty())
        weight->erase();
    ++numFolded;
  }

  ProjectionFormats formats;
};

} // namespace
} // namespace mlir::moe
