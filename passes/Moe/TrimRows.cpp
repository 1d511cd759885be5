// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "passes/Moe/Passes.h"

#include "mlir/IR/Builders.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/TypeSwitch.h"

namespace mlir::moe {

#define GEN_PASS_DEF_TRIMROWSPASS
#include "passes/Moe/Passes.h.inc"

namespace {

/// The operands of which row t alone makes row t of all results; none if `op` mixes rows, or makes them.
SmallVector<OpOperand *> rowOperands(Operation *op) {
  SmallVector<OpOperand *> operands;
  auto add = [&](auto... given) { (operands.push_back(given), ...); };
  auto addIf = [&](MutableOperandRange optional) {
    if (!optional.empty())
      operands.push_back(&optional[0]);
  };
  TypeSwitch<Operation *>(op)
      .Case([&](LinearOp op) {
        add(&op.getXMutable());
        addIf(op.getResidualMutable());
      })
      .Case<GateUpOp, RmsNormOp, FakeQuantizeOp, ReshapeOp, SplitOp>([&](auto op) { add(&op.getXMutable()); })
      .Case([&](SwigluOp op) { add(&op.getGateMutable(), &op.getUpMutable()); })
      .Case([&](AddOp op) { add(&op.getLhsMutable(), &op.getRhsMutable()); })
      .Case([&](RouteOp op) { add(&op.getLogitsMutable()); })
      .Case([&](ExpertsOp op) {
        add(&op.getXMutable(), &op.getWeightsMutable(), &op.getExpertsMutable());
        addIf(op.getResidualMutable());
      });
  return operands;
}

/// Can `moe.gather_rows` read `value`?
bool isGatherable(Value value) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  return type && type.getRank() == 2 && type.getElementType().isF32();
}

/// What of one block need only be computed for the rows that `rows` names.
class Trimming {
public:
  Trimming(Block &block, Value rows) : block(block), rows(rows) {}

  /// Returns how many ops run for `rows` alone now.
  int64_t run() {
    do
      collect();
    while (exclude());
    if (!trimmed.empty())
      rewrite();
    return static_cast<int64_t>(trimmed.size());
  }

private:
  Type entriesOf(Type tensor) const {
    auto type = cast<RankedTensorType>(tensor);
    SmallVector<int64_t> shape(type.getShape());
    shape[0] = cast<RankedTensorType>(rows.getType()).getDimSize(0);
    return type.clone(shape);
  }

  /// Is this where rows are picked?
  bool isPick(OpOperand &use) const {
    auto gather = dyn_cast<GatherRowsOp>(use.getOwner());
    return gather && gather->getBlock() == &block && gather.getRows() == rows && &gather.getXMutable() == &use &&
           gather.getType() == entriesOf(gather.getX().getType());
  }

  bool isThere(Operation *op) const {
    Operation *definition = rows.getDefiningOp();
    return !definition || definition->getBlock() != &block || definition->isBeforeInBlock(op);
  }

  /// From the last op up: those whose results are read for `rows` alone.
  void collect() {
    trimmed.clear();
    for (Operation &op : llvm::reverse(block)) {
      auto readForRows = [&](OpOperand &use) {
        return isPick(use) ||
               (trimmed.contains(use.getOwner()) && llvm::is_contained(rowOperands(use.getOwner()), &use));
      };
      if (!op.use_empty() && !kept.contains(&op) && !rowOperands(&op).empty() && isThere(&op) &&
          llvm::all_of(op.getUses(), readForRows))
        trimmed.insert(&op);
    }
  }

  /// Takes out what would begin with rows that no gather can give, or with a view, which is as cheap for all rows.
  bool exclude() {
    size_t before = kept.size();
    for (Operation *op : trimmed)
      for (OpOperand *operand : rowOperands(op)) {
        Operation *producer = operand->get().getDefiningOp();
        if ((!producer || !trimmed.contains(producer)) &&
            (isa<ReshapeOp, SplitOp>(op) || !isGatherable(operand->get())))
          kept.insert(op);
      }
    return kept.size() != before;
  }

  void rewrite() {
    SmallVector<GatherRowsOp> picks;
    for (Operation *op : trimmed)
      for (OpOperand &use : op->getUses())
        if (isPick(use))
          picks.push_back(cast<GatherRowsOp>(use.getOwner()));
    Location loc = picks.front().getLoc();

    DenseMap<Value, Value> gathered;
    for (Operation *op : llvm::reverse(trimmed)) {
      for (OpOperand *operand : rowOperands(op)) {
        Value all = operand->get();
        if (Operation *producer = all.getDefiningOp(); producer && trimmed.contains(producer))
          continue;
        Value &some = gathered[all];
        if (!some) {
          OpBuilder builder(op);
          some = GatherRowsOp::create(builder, loc, entriesOf(all.getType()), all, rows);
        }
        operand->set(some);
      }
      for (Value result : op->getResults())
        result.setType(entriesOf(result.getType()));
    }
    for (GatherRowsOp pick : picks) {
      pick.replaceAllUsesWith(pick.getX());
      pick.erase();
    }
  }

  Block &block;
  Value rows;
  llvm::SetVector<Operation *> trimmed; ///< the last first
  DenseSet<Operation *> kept;           ///< compute all rows for a reason that `collect` does not see
};

struct TrimRowsPass final : impl::TrimRowsPassBase<TrimRowsPass> {
  void runOnOperation() override {
    llvm::SetVector<std::pair<Block *, Value>> wanted;
    getOperation().walk([&](GatherRowsOp gather) { wanted.insert({gather->getBlock(), gather.getRows()}); });
    for (auto [block, rows] : wanted)
      numTrimmed += Trimming(*block, rows).run();
  }
};

} // namespace
} // namespace mlir::moe
