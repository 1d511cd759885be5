// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/Passes.h"
#include "passes/Moe/WeightFormat.h"

#include "mlir/IR/Builders.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "llvm/ADT/TypeSwitch.h"

#include <array>

namespace mlir::moe {

#define GEN_PASS_DEF_QUANTIZEPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// What a projection is for.
enum Role : uint8_t { Experts, Attention, Dense, Head, NumRoles, Router = NumRoles };

/// The op that `value` comes from, past ops that only rename elements.
Operation *sourceOf(Value value) {
  Operation *op = value.getDefiningOp();
  while (isa_and_nonnull<ReshapeOp, SplitOp>(op))
    op = op->getOperand(0).getDefiningOp();
  return op;
}

/// Does an attention take `value`, be it through norms, rotations, reshapes and further projections? What is added to
/// the residual stream has left it.
bool feedsAttention(Value value) {
  return llvm::any_of(value.getUses(), [](OpOperand &use) {
    Operation *user = use.getOwner();
    if (isa<AttentionOp, MlaAttentionOp, CacheAppendOp>(user))
      return true;
    auto linear = dyn_cast<LinearOp>(user);
    if (linear && (use.get() != linear.getX() || linear.getResidual()))
      return false;
    return isa<LinearOp, RmsNormOp, ReshapeOp, SplitOp, RopeOp>(user) &&
           llvm::any_of(user->getResults(), feedsAttention);
  });
}

/// Does `value` come from rows that were picked for logits?
bool isOfLogits(Value value) {
  Operation *op = value.getDefiningOp();
  while (isa_and_nonnull<RmsNormOp>(op))
    op = op->getOperand(0).getDefiningOp();
  return isa_and_nonnull<GatherRowsOp>(op);
}

Role roleOf(LinearOp op) {
  if (llvm::any_of(op->getUsers(), llvm::IsaPred<RouteOp>))
    return Router;
  if (isOfLogits(op.getX()))
    return Head;
  bool after = isa_and_nonnull<AttentionOp, MlaAttentionOp>(sourceOf(op.getX()));
  return after || (!op.getResidual() && feedsAttention(op.getResult())) ? Attention : Dense;
}

struct QuantizePass final : impl::QuantizePassBase<QuantizePass> {
  using Base::Base;

  void runOnOperation() override {
    for (auto [role, name] : {std::pair(Experts, &experts), {Attention, &attention}, {Dense, &dense}, {Head, &head}}) {
      moec::Result<WeightFormat> format = WeightFormat::parse(*name);
      if (!format) {
        getOperation().emitError() << format.message();
        return signalPassFailure();
      }
      formats[role] = *format;
    }
    WalkResult result = getOperation().walk([&](Operation *op) {
      LogicalResult done =
          TypeSwitch<Operation *, LogicalResult>(op)
              .Case([&](ExpertsOp op) {
                return store(Experts, {&op.getGateMutable(), &op.getUpMutable(), &op.getDownMutable()});
              })
              .Case([&](GateUpOp op) { return store(Dense, {&op.getGateMutable(), &op.getUpMutable()}); })
              .Case([&](LinearOp op) { return store(roleOf(op), {&op.getWeightMutable()}); })
              .Default(success());
      return failed(done) ? WalkResult::interrupt() : WalkResult::advance();
    });
    if (result.wasInterrupted())
      signalPassFailure();
  }

private:
  /// Gives each of the weights a recipe that ends in the role's format. Other users of a weight keep the old one.
  LogicalResult store(Role role, ArrayRef<OpOperand *> operands) {
    if (role == Router || formats[role].isKeep())
      return success();
    for (OpOperand *operand : operands) {
      auto weight = operand->get().getDefiningOp<WeightOp>();
      if (!weight)
        continue;
      auto type = cast<RankedTensorType>(weight.getType());
      int64_t multiple = formats[role].columnMultiple();
      if (type.getShape().back() % multiple != 0)
        return weight.emitOpError("of ") << weight.getSources()[0] << " has rows of " << type.getShape().back()
                                         << ", which are no whole groups of " << multiple;
      Attribute step = formats[role].step(&getContext());
      Type element = isa<CastAttr>(step) ? cast<CastAttr>(step).getType() : Type(Float32Type::get(&getContext()));
      if (isa<CastAttr>(step) && element == type.getElementType())
        continue;
      OpBuilder builder(weight);
      SmallVector<Attribute> recipe(weight.getRecipe().getValue());
      recipe.push_back(step);
      auto stored = WeightOp::create(builder, weight.getLoc(), type.clone(element), weight.getSources(),
                                     builder.getArrayAttr(recipe));
      operand->set(stored);
      if (weight->use_empty())
        weight->erase();
      ++numStored;
    }
    return success();
  }

  std::array<WeightFormat, NumRoles> formats;
};

} // namespace
} // namespace mlir::moe
