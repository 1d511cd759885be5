// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/Reference/Interpreter.h"

#include "dialects/Moe/Recipe.h"
#include "dialects/Moe/Reference/Recipe.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/MathExtras.h"

#include <map>
#include <string>
#include <utility>

namespace mlir::moe {

using reference::IndexTensor;
using reference::Tensor;

class Interpreter::Machine {
public:
  virtual ~Machine() = default;
  virtual void reset() = 0;
  virtual FailureOr<std::vector<ReferenceValue>> call(func::FuncOp function, std::vector<ReferenceValue> arguments) = 0;
  Observer observer;
};

namespace {

std::string print(ArrayRef<int64_t> shape) {
  std::string text = "[";
  for (auto [i, dim] : llvm::enumerate(shape))
    text += (i ? ", " : "") + std::to_string(dim);
  return text + "]";
}

template <typename To, typename From> Tensor<To> convert(const Tensor<From> &tensor) {
  return Tensor<To>(tensor.shape, std::vector<To>(tensor.data.begin(), tensor.data.end()));
}

/// Whether a tensor of `shape` may be of `type`.
bool fits(ArrayRef<int64_t> shape, Type type) {
  auto tensorType = dyn_cast<RankedTensorType>(type);
  return tensorType && succeeded(verifyCompatibleShape(tensorType.getShape(), shape));
}

template <typename T> class TypedMachine final : public Interpreter::Machine {
public:
  TypedMachine(const moec::TensorSource &weights, const InterpreterOptions &options)
      : source(weights), options(options) {}

  void reset() override { caches.clear(); }
  FailureOr<std::vector<ReferenceValue>> call(func::FuncOp function, std::vector<ReferenceValue> arguments) override;

private:
  using Real = std::shared_ptr<const Tensor<T>>;
  using Index = std::shared_ptr<const IndexTensor>;
  using Held = std::variant<Real, Index>;

  /// An operand to fetch. Each letter names a dimension: equal letters within an op are equal sizes, '?' is any size.
  struct Operand {
    StringRef name;
    Value value; ///< null for an absent optional operand
    std::string dims;
    std::variant<Real *, Index *> place;
  };
  LogicalResult fetch(Operation *op, ArrayRef<Operand> operands);
  FailureOr<Held> held(Value value);
  FailureOr<Real> weight(WeightOp op);

  /// Gives `result` its value, if its type allows it.
  LogicalResult set(OpResult result, Held value);
  LogicalResult set(Value result, Tensor<T> tensor) {
    return set(cast<OpResult>(result), Held(std::make_shared<const Tensor<T>>(std::move(tensor))));
  }
  LogicalResult set(Value result, IndexTensor tensor) {
    return set(cast<OpResult>(result), Held(std::make_shared<const IndexTensor>(std::move(tensor))));
  }
  ReferenceValue show(const Held &value) {
    if (const Real *real = std::get_if<Real>(&value))
      return convert<double>(**real);
    return *std::get<Index>(value);
  }

  LogicalResult checkRange(Operation *op, StringRef name, const IndexTensor &indices, int64_t size);
  FailureOr<reference::Cache<T> *> cache(Operation *op, FlatSymbolRefAttr symbol, int64_t width);
  /// A part of entries as the cache gives it back; `first`: the one that caches in codes have codes for.
  Tensor<T> stored(Operation *op, FlatSymbolRefAttr cache, const Tensor<T> &part, bool first);
  LogicalResult execute(Operation *op);

  LogicalResult evaluate(EmbedOp op);
  LogicalResult evaluate(GatherRowsOp op);
  LogicalResult evaluate(LinearOp op);
  LogicalResult evaluate(GateUpOp op);
  LogicalResult evaluate(SwigluOp op);
  LogicalResult evaluate(AddOp op);
  LogicalResult evaluate(RmsNormOp op);
  LogicalResult evaluate(FakeQuantizeOp op);
  LogicalResult evaluate(ReshapeOp op);
  LogicalResult evaluate(SplitOp op);
  LogicalResult evaluate(RopeOp op);
  LogicalResult evaluate(CacheAppendOp op);
  LogicalResult evaluate(AttentionOp op);
  LogicalResult evaluate(MlaAttentionOp op);
  LogicalResult evaluate(RouteOp op);
  LogicalResult evaluate(ExpertsOp op);

  const moec::TensorSource &source;
  InterpreterOptions options;
  std::map<std::string, reference::Cache<T>> caches; ///< by symbol
  DenseMap<Value, Held> values;                      ///< of the function that runs
  DenseMap<std::pair<Attribute, Attribute>, std::pair<Type, Real>> keptWeights;
  uint64_t keptBytes = 0;
};

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

template <typename T> FailureOr<std::shared_ptr<const Tensor<T>>> TypedMachine<T>::weight(WeightOp op) {
  std::pair<Attribute, Attribute> key{op.getSourcesAttr(), op.getRecipeAttr()};
  Type type = op.getType();
  if (auto it = keptWeights.find(key); it != keptWeights.end() && it->second.first == type)
    return it->second.second;

  auto result = reference::evaluateRecipe(op.getSources(), op.getRecipe(), source, options.moments);
  if (!result)
    return op.emitError(result.message());
  auto elementType = storedType(cast<ShapedType>(type).getElementType());
  if (elementType != result->dtype || !fits(result->values.shape, type))
    return op.emitError() << "is " << StringRef(moec::toString(result->dtype)) << " " << print(result->values.shape)
                          << " in the checkpoint, but " << type << " in the program";

  Real real;
  if constexpr (std::is_same_v<T, float>)
    real = std::make_shared<const Tensor<T>>(std::move(result->values));
  else
    real = std::make_shared<const Tensor<T>>(convert<T>(result->values));
  uint64_t bytes = real->data.size() * sizeof(T);
  if (keptBytes + bytes <= options.keepWeightBytes && keptWeights.try_emplace(key, type, real).second)
    keptBytes += bytes;
  return real;
}

template <typename T> auto TypedMachine<T>::held(Value value) -> FailureOr<Held> {
  if (auto weightOp = value.getDefiningOp<WeightOp>()) {
    FailureOr<Real> real = weight(weightOp);
    if (failed(real))
      return failure();
    return Held(*real);
  }
  return values.at(value);
}

template <typename T> LogicalResult TypedMachine<T>::fetch(Operation *op, ArrayRef<Operand> operands) {
  std::map<char, std::pair<int64_t, StringRef>> sizes;
  for (const Operand &operand : operands) {
    if (!operand.value)
      continue;
    FailureOr<Held> value = held(operand.value);
    if (failed(value))
      return failure();

    ArrayRef<int64_t> shape;
    if (auto *place = std::get_if<Real *>(&operand.place)) {
      **place = std::get<Real>(*value);
      shape = (**place)->shape;
    } else {
      *std::get<Index *>(operand.place) = std::get<Index>(*value);
      shape = std::get<Index>(*value)->shape;
    }

    if (shape.size() != operand.dims.size())
      return op->emitError() << operand.name << " is " << print(shape) << ", expected rank " << operand.dims.size();
    for (auto [dim, size] : llvm::zip_equal(operand.dims, shape)) {
      auto [it, isNew] = sizes.try_emplace(dim, size, operand.name);
      if (dim != '?' && it->second.first != size)
        return op->emitError() << operand.name << " is " << print(shape) << ", but " << it->second.second << " has "
                               << it->second.first << " in place of its " << size;
    }
  }
  return success();
}

template <typename T> LogicalResult TypedMachine<T>::set(OpResult result, Held value) {
  ArrayRef<int64_t> shape = std::visit([](const auto &tensor) { return ArrayRef<int64_t>(tensor->shape); }, value);
  if (!fits(shape, result.getType()))
    return result.getOwner()->emitError() << "gives " << print(shape) << ", but its type says " << result.getType();
  values[result] = std::move(value);
  return success();
}

template <typename T>
LogicalResult TypedMachine<T>::checkRange(Operation *op, StringRef name, const IndexTensor &indices, int64_t size) {
  for (auto [i, index] : llvm::enumerate(indices.data))
    if (index < 0 || index >= size)
      return op->emitError() << name << "[" << i << "] is " << index << ", expected 0 <= " << name << " < " << size;
  return success();
}

template <typename T>
FailureOr<reference::Cache<T> *> TypedMachine<T>::cache(Operation *op, FlatSymbolRefAttr symbol, int64_t width) {
  auto cacheOp = SymbolTable::lookupNearestSymbolFrom<CacheOp>(op, symbol);
  if (!cacheOp)
    return op->emitError() << symbol << " is no moe.cache";
  if (int64_t(cacheOp.getWidth()) != width)
    return op->emitError() << "an entry of " << width << " elements does not fit " << symbol << " of width "
                           << cacheOp.getWidth();
  return &caches[symbol.getValue().str()];
}

template <typename T>
Tensor<T> TypedMachine<T>::stored(Operation *op, FlatSymbolRefAttr cache, const Tensor<T> &part, bool first) {
  auto cacheOp = SymbolTable::lookupNearestSymbolFrom<CacheOp>(op, cache);
  if (!cacheOp || !cacheOp.getFormat())
    return part;
  if (CacheCodesAttr codes = cacheOp.getCodes(); codes && first)
    return reference::fromCodes(part, codes);
  return reference::fakeQuantize(part, CastAttr::get(op->getContext(), BFloat16Type::get(op->getContext())));
}

//===----------------------------------------------------------------------===//
// Ops
//===----------------------------------------------------------------------===//

template <typename T> LogicalResult TypedMachine<T>::evaluate(EmbedOp op) {
  Real table;
  Index tokens;
  if (failed(fetch(op, {{"table", op.getTable(), "VD", &table}, {"tokens", op.getTokens(), "T", &tokens}})) ||
      failed(checkRange(op, "tokens", *tokens, table->dim(0))))
    return failure();
  return set(op.getResult(), reference::embed(*table, *tokens));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(GatherRowsOp op) {
  Real x;
  Index rows;
  if (failed(fetch(op, {{"x", op.getX(), "TD", &x}, {"rows", op.getRows(), "R", &rows}})) ||
      failed(checkRange(op, "rows", *rows, x->dim(0))))
    return failure();
  return set(op.getResult(), reference::gatherRows(*x, *rows));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(LinearOp op) {
  Real x, weight, residual;
  if (failed(fetch(op, {{"x", op.getX(), "TK", &x},
                        {"weight", op.getWeight(), "NK", &weight},
                        {"residual", op.getResidual(), "TN", &residual}})))
    return failure();
  return set(op.getResult(), reference::linear(*x, *weight, residual.get()));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(GateUpOp op) {
  Real x, gate, up;
  if (failed(
          fetch(op, {{"x", op.getX(), "TD", &x}, {"gate", op.getGate(), "FD", &gate}, {"up", op.getUp(), "FD", &up}})))
    return failure();
  return set(op.getResult(), reference::gateUp(*x, *gate, *up));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(SwigluOp op) {
  Real gate, up;
  if (failed(fetch(op, {{"gate", op.getGate(), "TF", &gate}, {"up", op.getUp(), "TF", &up}})))
    return failure();
  return set(op.getResult(), reference::swiglu(*gate, *up));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(AddOp op) {
  Real lhs, rhs;
  if (failed(fetch(op, {{"lhs", op.getLhs(), "TD", &lhs}, {"rhs", op.getRhs(), "TD", &rhs}})))
    return failure();
  return set(op.getResult(), reference::add(*lhs, *rhs));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(RmsNormOp op) {
  Real x, weight;
  if (failed(fetch(op, {{"x", op.getX(), "TD", &x}, {"weight", op.getWeight(), "D", &weight}})))
    return failure();
  return set(op.getResult(), reference::rmsNorm(*x, weight.get(), op.getEps().convertToDouble()));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(FakeQuantizeOp op) {
  Real x;
  if (failed(fetch(op, {{"x", op.getX(), "TD", &x}})))
    return failure();
  return set(op.getResult(), reference::fakeQuantize(*x, op.getFormat()));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(ReshapeOp op) {
  Real x;
  auto in = cast<RankedTensorType>(op.getX().getType()), out = cast<RankedTensorType>(op.getResult().getType());
  if (failed(fetch(op, {{"x", op.getX(), std::string(in.getRank(), '?'), &x}})))
    return failure();
  std::vector<int64_t> shape(out.getShape());
  shape[0] = x->dim(0);
  int64_t size = 1;
  for (int64_t dim : ArrayRef<int64_t>(shape).drop_front())
    if (ShapedType::isDynamic(dim) || llvm::MulOverflow(size, dim, size))
      return op.emitError() << "cannot tell the size of " << out;
  if (size != x->rowSize())
    return op.emitError() << "x is " << print(x->shape) << ", which cannot become " << print(shape);
  return set(op.getResult(), reference::reshape(*x, std::move(shape)));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(SplitOp op) {
  Real x;
  auto in = cast<RankedTensorType>(op.getX().getType());
  if (failed(fetch(op, {{"x", op.getX(), std::string(in.getRank(), '?'), &x}})))
    return failure();
  std::vector<int64_t> widths;
  int64_t rest = x->lastDim();
  for (Value part : op.getParts()) {
    widths.push_back(cast<RankedTensorType>(part.getType()).getShape().back());
    if (ShapedType::isDynamic(widths.back()) || widths.back() > rest)
      return op.emitError() << "x is " << print(x->shape) << ", which has no such part as " << part.getType();
    rest -= widths.back();
  }
  if (rest)
    return op.emitError() << "x is " << print(x->shape) << ", " << rest << " wider than its parts";
  std::vector<Tensor<T>> parts = reference::split(*x, widths);
  for (auto [result, part] : llvm::zip_equal(op.getParts(), parts))
    if (failed(set(result, std::move(part))))
      return failure();
  return success();
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(RopeOp op) {
  Real x;
  Index positions;
  bool hasHeads = cast<RankedTensorType>(op.getX().getType()).getRank() == 3;
  if (failed(fetch(op,
                   {{"x", op.getX(), hasHeads ? "THD" : "TD", &x}, {"positions", op.getPositions(), "T", &positions}})))
    return failure();
  ArrayRef<float> invFreq = op.getRope().getInvFreq().asArrayRef();
  if (invFreq.empty() || x->lastDim() != 2 * int64_t(invFreq.size()))
    return op.emitError() << "x is " << print(x->shape) << ", but there are " << invFreq.size()
                          << " inverse frequencies for its pairs";
  return set(op.getResult(), reference::rope(*x, *positions, invFreq, op.getRope().getFactor().getValueAsDouble()));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(CacheAppendOp op) {
  std::vector<Real> parts(op.getParts().size());
  Index positions, slots;
  SmallVector<Operand> operands;
  for (auto [value, part] : llvm::zip_equal(op.getParts(), parts))
    operands.push_back({"part", value, "T?", &part});
  operands.push_back({"positions", op.getPositions(), "T", &positions});
  operands.push_back({"slots", op.getSlots(), "T", &slots});
  if (failed(fetch(op, operands)))
    return failure();

  std::vector<Tensor<T>> entries;
  int64_t width = 0;
  for (const Real &part : parts) {
    entries.push_back(stored(op, op.getCacheAttr(), *part, /*first=*/entries.empty()));
    width += part->dim(1);
  }
  FailureOr<reference::Cache<T> *> state = cache(op, op.getCacheAttr(), width);
  if (failed(state))
    return failure();
  auto context = reference::cacheAppend(**state, entries, *positions, *slots);
  if (!context)
    return op.emitError(context.message());
  if (op.getContext().size() != context->parts.size())
    return op.emitError() << "has " << context->parts.size() << " parts, but " << op.getContext().size() << " results";
  for (auto [result, part] : llvm::zip_equal(op.getContext(), context->parts))
    if (failed(set(result, std::move(part))))
      return failure();
  return success(succeeded(set(op.getContextPositions(), std::move(context->positions))) &&
                 succeeded(set(op.getContextSlots(), std::move(context->slots))));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(AttentionOp op) {
  Real query, ropeQuery, key, ropeKey, value;
  Index positions, slots, contextPositions, contextSlots;
  if (failed(fetch(op, {{"query", op.getQuery(), "THN", &query},
                        {"rope_query", op.getRopeQuery(), "THR", &ropeQuery},
                        {"key", op.getKey(), "SHN", &key},
                        {"rope_key", op.getRopeKey(), "SR", &ropeKey},
                        {"value", op.getValue(), "SHV", &value},
                        {"positions", op.getPositions(), "T", &positions},
                        {"slots", op.getSlots(), "T", &slots},
                        {"context_positions", op.getContextPositions(), "S", &contextPositions},
                        {"context_slots", op.getContextSlots(), "S", &contextSlots}})))
    return failure();
  for (int64_t t = 0; t < positions->dim(0); ++t)
    if (reference::visibleRows(t, *positions, *slots, *contextPositions, *contextSlots).empty())
      return op.emitError() << "query " << t << " (slot " << slots->data[t] << ", position " << positions->data[t]
                            << ") sees no context row";
  return set(op.getResult(), reference::attention(*query, *ropeQuery, *key, *ropeKey, *value, *positions, *slots,
                                                  *contextPositions, *contextSlots, op.getScale().convertToDouble()));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(MlaAttentionOp op) {
  Real query, ropeQuery, latent, ropeKey, wUk, wUv;
  Index positions, slots;
  if (failed(fetch(op, {{"query", op.getQuery(), "THN", &query},
                        {"rope_query", op.getRopeQuery(), "THR", &ropeQuery},
                        {"latent", op.getLatent(), "TC", &latent},
                        {"rope_key", op.getRopeKey(), "TR", &ropeKey},
                        {"w_uk", op.getWUk(), "HNC", &wUk},
                        {"w_uv", op.getWUv(), "HVC", &wUv},
                        {"positions", op.getPositions(), "T", &positions},
                        {"slots", op.getSlots(), "T", &slots}})))
    return failure();
  FailureOr<reference::Cache<T> *> state = cache(op, op.getCacheAttr(), latent->dim(1) + ropeKey->dim(1));
  if (failed(state))
    return failure();
  Tensor<T> keptLatent = stored(op, op.getCacheAttr(), *latent, /*first=*/true);
  Tensor<T> keptKey = stored(op, op.getCacheAttr(), *ropeKey, /*first=*/false);
  auto result = reference::mlaAttention(**state, *query, *ropeQuery, keptLatent, keptKey, *wUk, *wUv, *positions,
                                        *slots, op.getScale().convertToDouble(), op.getExpandedFrom().value_or(0));
  if (!result)
    return op.emitError(result.message());
  return set(op.getResult(), std::move(*result));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(RouteOp op) {
  Real logits, bias;
  if (failed(fetch(op, {{"logits", op.getLogits(), "TE", &logits}, {"bias", op.getBias(), "E", &bias}})))
    return failure();
  int64_t experts = logits->dim(1), topk = op.getTopk(), groups = op.getGroups(), topkGroups = op.getTopkGroups();
  if (groups < 1 || experts % groups)
    return op.emitError() << experts << " experts cannot be cut into " << groups << " groups";
  if (topkGroups < 1 || topkGroups > groups || topk < 1 || topk > experts / groups * topkGroups)
    return op.emitError() << "cannot choose " << topk << " of " << experts << " experts from " << topkGroups << " of "
                          << groups << " groups";
  auto result = reference::route(*logits, bias.get(),
                                 {.scoring = op.getScoring(),
                                  .topk = topk,
                                  .groups = groups,
                                  .topkGroups = topkGroups,
                                  .groupScore = op.getGroupScore(),
                                  .normalize = op.getNormalize(),
                                  .scale = op.getScale().convertToDouble()});
  return success(succeeded(set(op.getWeights(), std::move(result.weights))) &&
                 succeeded(set(op.getExperts(), std::move(result.experts))));
}

template <typename T> LogicalResult TypedMachine<T>::evaluate(ExpertsOp op) {
  Real x, weights, gate, up, down, residual;
  Index experts;
  if (failed(fetch(op, {{"x", op.getX(), "TD", &x},
                        {"weights", op.getWeights(), "TK", &weights},
                        {"experts", op.getExperts(), "TK", &experts},
                        {"gate", op.getGate(), "EFD", &gate},
                        {"up", op.getUp(), "EFD", &up},
                        {"down", op.getDown(), "EDF", &down},
                        {"residual", op.getResidual(), "TD", &residual}})) ||
      // How many experts there are besides the members, only the router knows.
      failed(checkRange(op, "experts", *experts,
                        op.getMembers() ? std::numeric_limits<int32_t>::max() : gate->dim(0) - op.getShared())))
    return failure();
  return set(op.getResult(),
             reference::experts(*x, *weights, *experts, *gate, *up, *down, residual.get(),
                                op.getActivations().value_or(nullptr), op.getMembers(), op.getShared()));
}

//===----------------------------------------------------------------------===//
// Functions
//===----------------------------------------------------------------------===//

template <typename T> LogicalResult TypedMachine<T>::execute(Operation *op) {
  LogicalResult status =
      llvm::TypeSwitch<Operation *, LogicalResult>(op)
          .template Case<EmbedOp, GatherRowsOp, LinearOp, GateUpOp, SwigluOp, AddOp, RmsNormOp, FakeQuantizeOp,
                         ReshapeOp, SplitOp, RopeOp, CacheAppendOp, AttentionOp, MlaAttentionOp, RouteOp, ExpertsOp>(
              [&](auto moeOp) { return evaluate(moeOp); })
          .Default([](Operation *other) {
            return other->emitError() << "the reference interpreter does not know '" << other->getName() << "'";
          });
  if (failed(status) || !observer)
    return status;
  std::vector<ReferenceValue> results;
  for (Value result : op->getResults())
    results.push_back(show(values.at(result)));
  observer(op, results);
  return success();
}

template <typename T>
FailureOr<std::vector<ReferenceValue>> TypedMachine<T>::call(func::FuncOp function,
                                                             std::vector<ReferenceValue> arguments) {
  if (!function.getBody().hasOneBlock())
    return function.emitError() << "has " << function.getBody().getBlocks().size()
                                << " blocks, but the reference interpreter runs functions of one";
  Block &body = function.getBody().front();
  if (arguments.size() != body.getNumArguments())
    return function.emitError() << "takes " << body.getNumArguments() << " arguments, but " << arguments.size()
                                << " are given";
  values.clear();
  for (auto [argument, given] : llvm::zip_equal(body.getArguments(), arguments)) {
    const auto *real = std::get_if<Tensor<double>>(&given);
    const auto *index = std::get_if<IndexTensor>(&given);
    Type type = argument.getType(), elementType = getElementTypeOrSelf(type);
    ArrayRef<int64_t> shape = real ? real->shape : index->shape;
    if (!fits(shape, type) || (real ? !isa<FloatType>(elementType) : !elementType.isInteger(32)))
      return function.emitError() << "argument " << argument.getArgNumber() << " is " << type << ", but "
                                  << (real ? "reals " : "integers ") << print(shape) << " are given";
    values[argument] = real ? Held(std::make_shared<const Tensor<T>>(convert<T>(*real)))
                            : Held(std::make_shared<const IndexTensor>(*index));
  }

  // Where each value is read last, to drop it there.
  DenseMap<Value, Operation *> lastUser;
  for (Operation &op : body)
    for (Value operand : op.getOperands())
      lastUser[operand] = &op;

  for (Operation &op : body.without_terminator()) {
    if (isa<WeightOp>(op))
      continue;
    if (failed(execute(&op)))
      return failure();
    for (Value operand : op.getOperands())
      if (lastUser[operand] == &op)
        values.erase(operand);
  }

  Operation *end = body.getTerminator();
  if (!isa<func::ReturnOp>(end))
    return end->emitError() << "the reference interpreter does not know '" << end->getName() << "'";
  std::vector<ReferenceValue> results;
  for (Value operand : end->getOperands()) {
    FailureOr<Held> value = held(operand);
    if (failed(value))
      return failure();
    results.push_back(show(*value));
  }
  values.clear();
  return results;
}

} // namespace

Interpreter::Interpreter(ModuleOp module, const moec::TensorSource &weights, InterpreterOptions options)
    : module(module) {
  if (options.precision == InterpreterOptions::Precision::F64)
    machine = std::make_unique<TypedMachine<double>>(weights, options);
  else
    machine = std::make_unique<TypedMachine<float>>(weights, options);
}

Interpreter::~Interpreter() = default;

void Interpreter::setObserver(Observer observer) { machine->observer = std::move(observer); }

void Interpreter::reset() { machine->reset(); }

FailureOr<std::vector<ReferenceValue>> Interpreter::call(StringRef name, std::vector<ReferenceValue> arguments) {
  auto function = module.lookupSymbol<func::FuncOp>(name);
  if (!function)
    return module.emitError() << "has no function @" << name;
  return machine->call(function, std::move(arguments));
}

FailureOr<Tensor<double>> Interpreter::run(ArrayRef<int32_t> tokens, ArrayRef<int32_t> positions,
                                           ArrayRef<int32_t> slots, ArrayRef<int32_t> rows) {
  if (positions.size() != tokens.size() || slots.size() != tokens.size())
    return module.emitError() << "a step has " << tokens.size() << " tokens, but " << positions.size()
                              << " positions and " << slots.size() << " slots";
  auto check = [&](StringRef name, ArrayRef<int32_t> list) -> LogicalResult {
    for (auto [i, value] : llvm::enumerate(list))
      if (value < 0)
        return module.emitError() << name << "[" << i << "] of a step is " << value << ", expected no negative value";
    return success();
  };
  if (failed(check("positions", positions)) || failed(check("slots", slots)))
    return failure();

  std::vector<ReferenceValue> arguments;
  for (ArrayRef<int32_t> list : {tokens, positions, slots, rows})
    arguments.push_back(IndexTensor({int64_t(list.size())}, std::vector<int32_t>(list)));
  FailureOr<std::vector<ReferenceValue>> results = call("step", std::move(arguments));
  if (failed(results))
    return failure();
  if (results->size() != 1 || !std::holds_alternative<Tensor<double>>(results->front()))
    return module.emitError() << "@step does not return one tensor of logits";
  return std::get<Tensor<double>>(std::move(results->front()));
}

} // namespace mlir::moe
