// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"
#include "passes/Moe/Passes.h"
#include "passes/Moe/ProjectionFormats.h"
#include "passes/Moe/WeightFormat.h"
#include "runtime/Support/Text.h"

#include "mlir/IR/Builders.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "llvm/ADT/TypeSwitch.h"

#include <string>

namespace mlir::moe {

#define GEN_PASS_DEF_QUANTIZEPASS
#include "passes/Moe/Passes.h.inc"

namespace {

struct QuantizePass final : impl::QuantizePassBase<QuantizePass> {
  using Base::Base;

  void runOnOperation() override {
    moec::Result<ProjectionFormats> parsed =
        ProjectionFormats::parse(experts, attention, dense, head, overrides, rounding);
    if (!parsed) {
      getOperation().emitError() << parsed.message();
      return signalPassFailure();
    }
    formats = std::move(*parsed);
    WalkResult result = getOperation().walk([&](Operation *op) {
      LogicalResult done =
          TypeSwitch<Operation *, LogicalResult>(op)
              .Case([&](ExpertsOp op) { return store(op); })
              .Case([&](GateUpOp op) {
                return store(op, Role::Dense, op.getXMutable(), {&op.getGateMutable(), &op.getUpMutable()});
              })
              .Case([&](LinearOp op) { return store(op, roleOf(op), op.getXMutable(), {&op.getWeightMutable()}); })
              .Default(success());
      return failed(done) ? WalkResult::interrupt() : WalkResult::advance();
    });
    if (result.wasInterrupted())
      return signalPassFailure();
    if (std::string unused = formats.unused(); !unused.empty()) {
      getOperation().emitError() << "no weight matches the regular expression '" << unused << "'";
      signalPassFailure();
    }
  }

private:
  /// Stores the weights of a projection that reads `x`.
  LogicalResult store(Operation *op, Role role, OpOperand &x, ArrayRef<OpOperand *> weights) {
    Attribute rounded;
    for (OpOperand *operand : weights) {
      auto weight = operand->get().getDefiningOp<WeightOp>();
      if (!weight)
        continue;
      WeightFormat format = formats.of(role, cast<StringAttr>(weight.getSources()[0]));
      if (failed(store(weight, *operand, format)))
        return failure();
      Attribute activations = format.activations(&getContext(), columnsOf(x.get()));
      if (operand != weights.front() && activations != rounded)
        return op->emitOpError("reads one input for weights of which only one rounds it");
      rounded = activations;
    }
    if (rounded)
      x.set(roundedInput(x.get(), rounded));
    return success();
  }

  /// Formats of an expert's projections.
  struct ExpertFormats {
    WeightFormat gateUp, down;
    bool operator==(const ExpertFormats &) const = default;
  };

  /// Stores experts; those of several formats in an op for each, whose sums add up.
  LogicalResult store(ExpertsOp op) {
    SmallVector<WeightOp> weights;
    for (Value tensor : {op.getGate(), op.getUp(), op.getDown()}) {
      auto weight = tensor.getDefiningOp<WeightOp>();
      if (!weight)
        return success();
      weights.push_back(weight);
    }
    int64_t count = cast<RankedTensorType>(op.getGate().getType()).getDimSize(0);
    std::optional<ArrayRef<int64_t>> members = op.getMembers();
    SmallVector<std::pair<ExpertFormats, SmallVector<int64_t>>> sets;
    for (int64_t i = 0; i < count - static_cast<int64_t>(op.getShared()); ++i) {
      int64_t expert = members ? (*members)[i] : i;
      SmallVector<WeightFormat> asked;
      for (WeightOp weight : weights)
        asked.push_back(
            formats.of(Role::Experts, memberOf(cast<StringAttr>(weight.getSources()[0]).getValue(), expert)));
      if (asked[0] != asked[1])
        return op.emitOpError("would have gate and up of expert ") << expert << " in two formats, but they need one";
      ExpertFormats mine{asked[0], asked[2]};
      auto *found = llvm::find_if(sets, [&](const auto &set) { return set.first == mine; });
      if (found == sets.end())
        found = &sets.emplace_back(mine, SmallVector<int64_t>());
      found->second.push_back(expert);
    }
    if (sets.size() == 1)
      return store(op, sets.front().first);
    if (op.getShared())
      return op.emitOpError("would be stored in several formats, but has a shared expert among the routed ones");
    OpBuilder builder(op);
    Value sum = op.getResidual();
    for (auto &[stored, experts] : sets) {
      SmallVector<Value> some;
      for (WeightOp weight : weights)
        some.push_back(membersOf(weight, experts));
      auto part =
          ExpertsOp::create(builder, op.getLoc(), op.getType(), op.getX(), op.getWeights(), op.getExperts(), some[0],
                            some[1], some[2], sum, op.getActivationsAttr(), builder.getDenseI64ArrayAttr(experts));
      sum = part.getResult();
      if (failed(store(part, stored)))
        return failure();
    }
    op.replaceAllUsesWith(sum);
    op.erase();
    for (WeightOp weight : weights)
      if (weight->use_empty())
        weight->erase();
    return success();
  }

  LogicalResult store(ExpertsOp op, const ExpertFormats &formats) {
    for (OpOperand *operand : {&op.getGateMutable(), &op.getUpMutable(), &op.getDownMutable()})
      if (failed(store(operand->get().getDefiningOp<WeightOp>(), *operand,
                       operand == &op.getDownMutable() ? formats.down : formats.gateUp)))
        return failure();
    if (Attribute inputs = formats.gateUp.activations(&getContext(), columnsOf(op.getX())))
      op.getXMutable().set(roundedInput(op.getX(), inputs));
    if (Attribute hidden = formats.down.activations(&getContext(), columnsOf(op.getDown())))
      op.setActivationsAttr(hidden);
    return success();
  }

  /// The same weight with some of the experts.
  static WeightOp membersOf(WeightOp weight, ArrayRef<int64_t> members) {
    OpBuilder builder(weight);
    SmallVector<Attribute> recipe(weight.getRecipe().getValue());
    for (Attribute &step : recipe)
      if (isa<StackAttr>(step))
        step = StackAttr::get(builder.getContext(), members);
    SmallVector<int64_t> shape(cast<RankedTensorType>(weight.getType()).getShape());
    shape[0] = static_cast<int64_t>(members.size());
    return WeightOp::create(builder, weight.getLoc(), cast<RankedTensorType>(weight.getType()).clone(shape),
                            weight.getSources(), builder.getArrayAttr(recipe));
  }

  static int64_t columnsOf(Value tensor) { return cast<RankedTensorType>(tensor.getType()).getShape().back(); }

  /// `x`, rounded: the same value for all that ask for the same.
  Value roundedInput(Value x, Attribute format) {
    Value &value = inputs[{x, format}];
    if (!value) {
      OpBuilder builder(&getContext());
      builder.setInsertionPointAfterValue(x);
      value = FakeQuantizeOp::create(builder, x.getLoc(), x.getType(), x, format);
    }
    return value;
  }

  /// Gives a weight a recipe that ends in the format. Other users of it keep the old one.
  LogicalResult store(WeightOp weight, OpOperand &operand, const WeightFormat &format) {
    if (format.isKeep())
      return success();
    auto type = cast<RankedTensorType>(weight.getType());
    Attribute step = format.step(&getContext(), type.getShape().back(), formats.rounding);
    if (auto quantize = dyn_cast<QuantizeAttr>(step); quantize && !quantize.divides(type.getShape().back()))
      return weight.emitOpError("of ") << weight.getSources()[0] << " has rows of " << type.getShape().back()
                                       << ", which are no whole groups of " << quantize.getFormat().unit();
    Type element = isa<CastAttr>(step) ? cast<CastAttr>(step).getType() : Type(Float32Type::get(&getContext()));
    if (isa<CastAttr>(step) && element == type.getElementType())
      return success();
    OpBuilder builder(weight);
    SmallVector<Attribute> recipe(weight.getRecipe().getValue());
    recipe.push_back(step);
    auto stored = WeightOp::create(builder, weight.getLoc(), type.clone(element), weight.getSources(),
                                   builder.getArrayAttr(recipe));
    operand.set(stored);
    if (weight->use_empty())
      weight->erase();
    ++numStored;
    return success();
  }

  ProjectionFormats formats;
  DenseMap<std::pair<Value, Attribute>, Value> inputs;
};

} // namespace
} // namespace mlir::moe
