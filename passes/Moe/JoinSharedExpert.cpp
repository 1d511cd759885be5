// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"
#include "passes/Moe/Fusion.h"
#include "passes/Moe/Passes.h"

#include "mlir/IR/PatternMatch.h"
#include "mlir/Interfaces/FunctionInterfaces.h"

namespace mlir::moe {

#define GEN_PASS_DEF_JOINSHAREDEXPERTPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// A network that every token takes, beside experts of which it takes some.
struct SharedExpert {
  GateUpOp gateUp;
  FakeQuantizeOp rounding; ///< of what `down` multiplies, or null
  LinearOp down;
};

/// linear(gate_up(x, ..), ..), or linear(fake_quantize(gate_up(x, ..)), ..), if nothing else reads what is between.
std::optional<SharedExpert> sharedExpert(Value value) {
  SharedExpert shared;
  shared.down = value.getDefiningOp<LinearOp>();
  if (!shared.down || shared.down.getResidual())
    return std::nullopt;
  Value hidden = shared.down.getX();
  shared.rounding = hidden.getDefiningOp<FakeQuantizeOp>();
  if (shared.rounding)
    hidden = shared.rounding.getX();
  shared.gateUp = hidden.getDefiningOp<GateUpOp>();
  if (!shared.gateUp || !shared.gateUp->hasOneUse() || (shared.rounding && !shared.rounding->hasOneUse()))
    return std::nullopt;
  return shared;
}

int64_t dimOf(Value tensor, unsigned index) { return cast<RankedTensorType>(tensor.getType()).getDimSize(index); }

/// Do cuts after each `size` elements lie between blocks of `block`? 0 stands for a whole dimension.
bool cutsBetween(int64_t size, int64_t block) { return block > 0 && size % block == 0; }

/// Why slices of `size` rows or columns of a weight, made by `step`, are not made as the whole of it; empty if they
/// are.
StringRef obstacleOf(Attribute step, Axis axis, int64_t size) {
  bool rows = axis == Axis::Rows;
  if (auto quantize = dyn_cast<QuantizeAttr>(step)) {
    if (quantize.getFormat().hasGlobal())
      return "has one scale for its whole weight";
    if (!cutsBetween(size, rows ? quantize.getRows() : quantize.getGroup()))
      return "would be cut within groups";
    return "";
  }
  auto stored = dyn_cast<DequantAttr>(step);
  if (!stored)
    return "";
  bool fp8 = stored.getFormat() == StoredFormat::Fp8;
  QuantizeAttr groups = stored.getInt4Groups();
  // Others are decoded, of which any rectangle may be read.
  if ((fp8 && !cutsBetween(size, rows ? stored.getRows() : stored.getCols())) ||
      (groups && !rows && !cutsBetween(size, groups.getGroup())))
    return "would be cut within groups";
  return "";
}

/// The weight of all experts with `count` more, slices of `shared`. Says in `obstacle` why there is none.
struct JoinedWeight {
  SmallVector<Attribute> sources, recipe;
  RankedTensorType type;

  static std::optional<JoinedWeight> of(Value experts, Value shared, Axis axis, int64_t count, StringRef &obstacle) {
    auto fail = [&](StringRef why) {
      obstacle = why;
      return std::nullopt;
    };
    auto first = experts.getDefiningOp<WeightOp>(), second = shared.getDefiningOp<WeightOp>();
    if (!first || !second)
      return fail("has no weights of the checkpoint");
    auto type = cast<RankedTensorType>(first.getType());
    if (type.getElementType() != cast<RankedTensorType>(second.getType()).getElementType())
      return fail("is stored in another type than the routed experts");
    JoinedWeight joined;
    SmallVector<Attribute> rest;
    bool stacked = false;
    for (Attribute step : first.getRecipe()) {
      joined.recipe.push_back(step);
      if (!isa<StackAttr>(step)) {
        rest.push_back(step);
        continue;
      }
      if (stacked || llvm::any_of(rest, [](Attribute before) { return !isa<DequantAttr>(before); }))
        return fail("has routed experts that are made in another way");
      stacked = true;
      joined.recipe.push_back(AppendAttr::get(step.getContext(), axis, count));
    }
    if (!stacked || rest != SmallVector<Attribute>(second.getRecipe().getValue()))
      return fail("is stored otherwise than the routed experts");
    for (Attribute step : rest) {
      auto quantize = dyn_cast<QuantizeAttr>(step);
      // Slices of rows have the columns of the whole.
      if (!isa<DequantAttr, CastAttr, QuantizeAttr>(step) && !(isa<ScaleColumnsAttr>(step) && axis == Axis::Rows))
        return fail("is made in a way that slices are not");
      if (quantize && quantize.getRounding() != Rounding::Nearest)
        return fail("is rounded by what a calibration says of the whole weight");
      if (count > 1)
        if (StringRef why = obstacleOf(step, axis, dimOf(experts, axis == Axis::Rows ? 1 : 2)); !why.empty())
          return fail(why);
    }
    if (first.getSources().size() != second.getSources().size() ||
        llvm::any_of(first.getSources().getAsRange<StringAttr>(), [](StringAttr name) { return !isFamily(name); }))
      return fail("is stored otherwise than the routed experts");
    llvm::append_range(joined.sources, first.getSources());
    llvm::append_range(joined.sources, second.getSources());
    joined.type = type.clone({type.getDimSize(0) + count, type.getDimSize(1), type.getDimSize(2)});
    return joined;
  }

  Value create(OpBuilder &builder, Location loc) const {
    return WeightOp::create(builder, loc, type, builder.getArrayAttr(sources), builder.getArrayAttr(recipe));
  }
};

/// add(experts(x, ..), linear(gate_up(x, g, u), d)) -> experts(x, ..) with slices of g, u and d
struct JoinSharedExpert final : OpRewritePattern<AddOp> {
  JoinSharedExpert(MLIRContext *context, Pass::Statistic &numJoined)
      : OpRewritePattern(context), numJoined(numJoined) {}

  LogicalResult matchAndRewrite(AddOp add, PatternRewriter &rewriter) const override {
    for (auto [one, other] : {std::pair(add.getLhs(), add.getRhs()), {add.getRhs(), add.getLhs()}})
      if (auto experts = one.getDefiningOp<ExpertsOp>())
        if (std::optional<SharedExpert> shared = sharedExpert(other))
          return join(add, experts, *shared, rewriter);
    return failure(); // no shared expert
  }

private:
  LogicalResult join(AddOp add, ExpertsOp experts, SharedExpert shared, PatternRewriter &rewriter) const {
    auto fail = [&](StringRef why) { return rewriter.notifyMatchFailure(shared.down, why); };
    if (experts.getMembers())
      return fail("is beside experts in several formats");
    if (experts.getShared())
      return fail("is beside experts that have a shared one already");
    if (!experts->hasOneUse() || !shared.down->hasOneUse())
      return fail("or the routed experts' sum has another use");
    if (experts.getX() != shared.gateUp.getX())
      return fail("reads another input than the routed experts");
    if (experts->getBlock() != add->getBlock())
      return fail("is in another block than the routed experts");
    Attribute rounding = shared.rounding ? shared.rounding.getFormat() : Attribute();
    if (rounding != experts.getActivations().value_or(nullptr))
      return fail("rounds its activations otherwise than the routed experts");
    auto readsChoice = [&](Operation *user) { return user == experts; };
    if (!llvm::all_of(experts.getExperts().getUsers(), readsChoice) ||
        !llvm::all_of(experts.getWeights().getUsers(), readsChoice))
      return fail("is beside experts whose choice others read");

    int64_t width = dimOf(experts.getGate(), 1), all = dimOf(shared.gateUp.getGate(), 0);
    if (all % width != 0)
      return fail("is no multiple of a routed expert wide");
    int64_t count = all / width;
    auto groups = dyn_cast_or_null<QuantizeAttr>(rounding);
    if (count > 1 && groups && !cutsBetween(width, groups.getGroup()))
      return fail("rounds groups of activations that would be cut");
    StringRef obstacle;
    auto gate = JoinedWeight::of(experts.getGate(), shared.gateUp.getGate(), Axis::Rows, count, obstacle);
    auto up = JoinedWeight::of(experts.getUp(), shared.gateUp.getUp(), Axis::Rows, count, obstacle);
    auto down = JoinedWeight::of(experts.getDown(), shared.down.getWeight(), Axis::Columns, count, obstacle);
    if (!gate || !up || !down)
      return fail(obstacle);

    SmallVector<Operation *> unread;
    for (Value weight : {experts.getGate(), experts.getUp(), experts.getDown(), shared.gateUp.getGate(),
                         shared.gateUp.getUp(), shared.down.getWeight()})
      if (!llvm::is_contained(unread, weight.getDefiningOp()))
        unread.push_back(weight.getDefiningOp());
    rewriter.setInsertionPoint(experts);
    Value joined[] = {gate->create(rewriter, experts.getGate().getLoc()),
                      up->create(rewriter, experts.getUp().getLoc()),
                      down->create(rewriter, experts.getDown().getLoc())};
    rewriter.modifyOpInPlace(experts, [&] {
      experts.getGateMutable().assign(joined[0]);
      experts.getUpMutable().assign(joined[1]);
      experts.getDownMutable().assign(joined[2]);
      experts.setShared(count);
    });
    rewriter.replaceOp(add, experts);
    rewriter.replaceOp(shared.down, experts); // read by nothing: tells what became of it
    if (shared.rounding)
      rewriter.eraseOp(shared.rounding);
    rewriter.eraseOp(shared.gateUp);
    for (Operation *weight : unread)
      if (weight->use_empty())
        rewriter.eraseOp(weight);
    ++numJoined;
    return success();
  }

  Pass::Statistic &numJoined;
};

struct JoinSharedExpertPass final : impl::JoinSharedExpertPassBase<JoinSharedExpertPass> {
  void runOnOperation() override {
    RewritePatternSet patterns(&getContext());
    patterns.add<JoinSharedExpert>(&getContext(), numJoined);
    if (failed(applyFusions(getOperation(), std::move(patterns), getArgument())))
      signalPassFailure();
  }
};

} // namespace
} // namespace mlir::moe
