// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/TypeUtilities.h"

#include <cmath>
#include <numeric>

using namespace mlir;
using namespace mlir::moe;

#define GET_OP_CLASSES
#include "dialects/Moe/MoeOps.cpp.inc"

//===----------------------------------------------------------------------===//
// Extents
//===----------------------------------------------------------------------===//

namespace {
/// One dimension of an operand or result, as a message speaks of it:
/// `weight 'tensor<8x16xbf16>' has 16 columns`.
struct Extent {
  StringRef name;
  Value value;
  unsigned dim;
  StringRef unit;

  RankedTensorType type() const { return cast<RankedTensorType>(value.getType()); }
  int64_t size() const { return type().getDimSize(dim); }
};

Diagnostic &operator<<(Diagnostic &diag, const Extent &extent) {
  return diag << extent.name << ' ' << extent.type() << " has " << extent.size() << ' ' << extent.unit;
}
} // namespace

/// Both extents are one dimension of the program; a dynamic one agrees with any.
static LogicalResult checkEqual(Operation *op, const Extent &found, const Extent &expected) {
  if (ShapedType::isDynamic(found.size()) || ShapedType::isDynamic(expected.size()) || found.size() == expected.size())
    return success();
  return op->emitOpError() << found << ", but " << expected;
}

/// Each of `found` against `expected`.
static LogicalResult checkAllEqual(Operation *op, ArrayRef<Extent> found, const Extent &expected) {
  for (const Extent &extent : found)
    if (failed(checkEqual(op, extent, expected)))
      return failure();
  return success();
}

static LogicalResult checkPositiveScale(Operation *op, const APFloat &scale) {
  if (scale.isFinite() && !scale.isNegative() && !scale.isZero())
    return success();
  return op->emitOpError("scale is ") << scale.convertToDouble() << ", expected a finite positive number";
}

/// `cache` names a `moe.cache` whose entries are as wide as `parts` together, of which the first is in its codes, if it
/// has any.
static LogicalResult checkCache(Operation *op, FlatSymbolRefAttr cache, ValueRange parts,
                                SymbolTableCollection &symbolTable) {
  Operation *symbol = symbolTable.lookupNearestSymbolFrom(op, cache);
  if (!symbol)
    return op->emitOpError() << "no symbol " << cache << " is visible here, expected a moe.cache";
  auto cacheOp = dyn_cast<CacheOp>(symbol);
  if (!cacheOp) {
    InFlightDiagnostic diag = op->emitOpError() << cache << " is a " << symbol->getName() << ", expected a moe.cache";
    diag.attachNote(symbol->getLoc()) << "defined here";
    return diag;
  }
  uint64_t width = 0;
  for (Value part : parts)
    width += cast<RankedTensorType>(part.getType()).getDimSize(1);
  if (width != cacheOp.getWidth()) {
    InFlightDiagnostic diag = op->emitOpError() << "stores entries of " << width << " channels, but cache " << cache
                                                << " has width " << cacheOp.getWidth();
    diag.attachNote(cacheOp.getLoc()) << "defined here";
    return diag;
  }
  int64_t first = cast<RankedTensorType>(parts.front().getType()).getDimSize(1);
  if (CacheCodesAttr codes = cacheOp.getCodes(); codes && codes.getChannels() != first) {
    InFlightDiagnostic diag = op->emitOpError()
                              << "stores entries whose first part has " << first << " channels, but cache " << cache
                              << " has codes for " << codes.getChannels();
    diag.attachNote(cacheOp.getLoc()) << "defined here";
    return diag;
  }
  return success();
}

//===----------------------------------------------------------------------===//
// Weights and state
//===----------------------------------------------------------------------===//

LogicalResult WeightOp::verify() {
  return verifyRecipe(getSources(), getRecipe(), getType(), [&] { return emitOpError(); });
}

/// `model.layers.0.self_attn.q_a_proj.weight` prints as `%q_a_proj`.
void WeightOp::getAsmResultNames(OpAsmSetValueNameFn setNameFn) {
  if (getSources().empty())
    return;
  StringRef name = cast<StringAttr>(getSources()[0]).getValue();
  name.consume_back(".weight");
  setNameFn(getResult(), name.substr(name.rfind('.') + 1));
}

LogicalResult CacheOp::verify() {
  // C2
  if (auto element = dyn_cast_if_present<TypeAttr>(getFormatAttr()); element && !element.getValue().isBF16())
    return emitOpError("has elements of ") << element.getValue() << ", expected bf16";
  // C3
  if (CacheCodesAttr codes = getCodes(); codes && codes.getChannels() > int64_t(getWidth()))
    return emitOpError("has codes for ") << codes.getChannels() << " channels, but entries of " << getWidth();
  return success();
}

CacheCodesAttr CacheOp::getCodes() { return dyn_cast_if_present<CacheCodesAttr>(getFormatAttr()); }

LogicalResult CacheAppendOp::verify() {
  // C1
  if (getParts().empty())
    return emitOpError("stores no part, expected one or more");
  if (getParts().size() != getContext().size())
    return emitOpError("stores ") << getParts().size() << " parts, but gives " << getContext().size();
  for (auto [part, context] : llvm::zip_equal(getParts(), getContext()))
    if (failed(checkEqual(*this, {"context", context, 1, "channels"}, {"part", part, 1, "channels"})))
      return failure();
  // C2
  Extent tokens{"positions", getPositions(), 0, "tokens"};
  for (Value part : getParts())
    if (failed(checkEqual(*this, {"part", part, 0, "tokens"}, tokens)))
      return failure();
  if (failed(checkEqual(*this, {"slots", getSlots(), 0, "tokens"}, tokens)))
    return failure();
  // C3
  Extent entries{"context_positions", getContextPositions(), 0, "entries"};
  for (Value context : getContext())
    if (failed(checkEqual(*this, {"context", context, 0, "entries"}, entries)))
      return failure();
  return checkEqual(*this, {"context_slots", getContextSlots(), 0, "entries"}, entries);
}

// C4, C5, C6
LogicalResult CacheAppendOp::verifySymbolUses(SymbolTableCollection &symbolTable) {
  return checkCache(*this, getCacheAttr(), getParts(), symbolTable);
}

void CacheAppendOp::getAsmResultNames(OpAsmSetValueNameFn setNameFn) {
  if (!getContext().empty())
    setNameFn(getContext().front(), "context");
  setNameFn(getContextPositions(), "context_positions");
  setNameFn(getContextSlots(), "context_slots");
}

//===----------------------------------------------------------------------===//
// Rows in and out
//===----------------------------------------------------------------------===//

LogicalResult EmbedOp::verify() {
  // C1
  if (failed(checkEqual(*this, {"result", getResult(), 0, "rows"}, {"tokens", getTokens(), 0, "entries"})))
    return failure();
  // C2
  return checkEqual(*this, {"result", getResult(), 1, "columns"}, {"table", getTable(), 1, "columns"});
}

LogicalResult GatherRowsOp::verify() {
  // C1
  if (failed(checkEqual(*this, {"result", getResult(), 0, "rows"}, {"rows", getRows(), 0, "entries"})))
    return failure();
  // C2
  return checkEqual(*this, {"result", getResult(), 1, "columns"}, {"x", getX(), 1, "columns"});
}

//===----------------------------------------------------------------------===//
// Layers
//===----------------------------------------------------------------------===//

LogicalResult LinearOp::verify() {
  Extent rows{"result", getResult(), 0, "rows"}, columns{"result", getResult(), 1, "columns"};
  // C1
  if (failed(checkEqual(*this, {"weight", getWeight(), 1, "columns"}, {"x", getX(), 1, "columns"})))
    return failure();
  // C2, C3
  if (failed(checkEqual(*this, columns, {"weight", getWeight(), 0, "rows"})) ||
      failed(checkEqual(*this, rows, {"x", getX(), 0, "rows"})))
    return failure();
  // C4
  if (Value residual = getResidual())
    if (failed(checkEqual(*this, {"residual", residual, 0, "rows"}, rows)) ||
        failed(checkEqual(*this, {"residual", residual, 1, "columns"}, columns)))
      return failure();
  return success();
}

LogicalResult GateUpOp::verify() {
  // C1
  if (getGate().getType() != getUp().getType())
    return emitOpError("up is ") << getUp().getType() << ", but gate is " << getGate().getType();
  // C2
  if (failed(checkEqual(*this, {"gate", getGate(), 1, "columns"}, {"x", getX(), 1, "columns"})))
    return failure();
  // C3, C4
  if (failed(checkEqual(*this, {"result", getResult(), 1, "columns"}, {"gate", getGate(), 0, "rows"})))
    return failure();
  return checkEqual(*this, {"result", getResult(), 0, "rows"}, {"x", getX(), 0, "rows"});
}

/// add(weight, weight) -> weight
LogicalResult AddOp::canonicalize(AddOp op, PatternRewriter &rewriter) {
  auto lhs = op.getLhs().getDefiningOp<WeightOp>(), rhs = op.getRhs().getDefiningOp<WeightOp>();
  if (!lhs || !rhs || lhs.getRecipe() != rhs.getRecipe())
    return rewriter.notifyMatchFailure(op, "no two weights that are made in one way");
  // It would join the tensors of both.
  if (llvm::any_of(lhs.getRecipe(), llvm::IsaPred<ConcatAttr>))
    return rewriter.notifyMatchFailure(op, "weights that are joined of several");
  SmallVector<Attribute> sources(lhs.getSources().getValue()), recipe(lhs.getRecipe().getValue());
  llvm::append_range(sources, rhs.getSources());
  recipe.push_back(SumAttr::get(op.getContext()));
  rewriter.replaceOpWithNewOp<WeightOp>(op, op.getType(), rewriter.getArrayAttr(sources),
                                        rewriter.getArrayAttr(recipe));
  return success();
}

LogicalResult RmsNormOp::verify() {
  // C1
  if (getWeight() && failed(checkEqual(*this, {"weight", getWeight(), 0, "elements"}, {"x", getX(), 1, "columns"})))
    return failure();
  // C2
  if (failed(checkEqual(*this, {"result", getResult(), 0, "rows"}, {"x", getX(), 0, "rows"})) ||
      failed(checkEqual(*this, {"result", getResult(), 1, "columns"}, {"x", getX(), 1, "columns"})))
    return failure();
  // C3
  if (!getEps().isFinite() || getEps().isNegative())
    return emitOpError("eps is ") << getEps().convertToDouble() << ", expected a finite number of at least 0";
  return success();
}

/// What activations may be rounded to.
static LogicalResult verifyActivations(Operation *op, Attribute format) {
  auto cast = dyn_cast<CastAttr>(format);
  auto codes = dyn_cast<QuantizeAttr>(format);
  bool known = cast ? cast.getType().isBF16()
                    : (codes.getCodes() == CodeFormat::Int8 || codes.getCodes() == CodeFormat::F8E4M3) &&
                          codes.getRows() == 1 && codes.getRounding() == Rounding::Nearest;
  if (!known)
    return op->emitOpError("rounds activations to ")
           << format << ", expected bf16, or int8 or f8e4m3 in groups of one row, to nearest";
  return success();
}

LogicalResult FakeQuantizeOp::verify() { return verifyActivations(*this, getFormat()); } // C1

/// Elements of one row. Unsigned: a product that wraps is still defined.
static uint64_t rowSize(RankedTensorType type) {
  ArrayRef<int64_t> dims = type.getShape().drop_front();
  return std::accumulate(dims.begin(), dims.end(), uint64_t(1), std::multiplies<uint64_t>());
}

LogicalResult ReshapeOp::verify() {
  // C1
  if (failed(checkEqual(*this, {"result", getResult(), 0, "rows"}, {"x", getX(), 0, "rows"})))
    return failure();
  // C2
  if (rowSize(getType()) != rowSize(getX().getType()))
    return emitOpError("result ") << getType() << " has rows of " << rowSize(getType()) << " elements, but x "
                                  << getX().getType() << " has rows of " << rowSize(getX().getType());
  return success();
}

OpFoldResult ReshapeOp::fold(FoldAdaptor) {
  if (getX().getType() == getType())
    return getX();
  auto inner = getX().getDefiningOp<ReshapeOp>();
  if (!inner)
    return {};
  // reshape(reshape(x)) -> x, or one reshape of x
  if (inner.getX().getType() == getType())
    return inner.getX();
  getXMutable().assign(inner.getX());
  return getResult();
}

/// A weight that is made as `weight` is, and then by `step`.
static Value extendRecipe(PatternRewriter &rewriter, WeightOp weight, Attribute step, Type type) {
  SmallVector<Attribute> recipe(weight.getRecipe().getValue());
  recipe.push_back(step);
  return WeightOp::create(rewriter, weight.getLoc(), type, weight.getSources(), rewriter.getArrayAttr(recipe));
}

/// reshape(weight) -> weight
LogicalResult ReshapeOp::canonicalize(ReshapeOp op, PatternRewriter &rewriter) {
  auto weight = op.getX().getDefiningOp<WeightOp>();
  if (!weight || !op.getType().hasStaticShape())
    return rewriter.notifyMatchFailure(op, "no weight of static shape");
  auto step = ReshapeAttr::get(op.getContext(), op.getX().getType().getShape(), op.getType().getShape());
  rewriter.replaceOp(op, extendRecipe(rewriter, weight, step, op.getType()));
  return success();
}

LogicalResult SplitOp::verify() {
  // C1
  if (getParts().empty())
    return emitOpError("gives no part, expected one or more");
  RankedTensorType source = getX().getType();
  unsigned last = source.getRank() - 1;
  uint64_t width = 0;
  for (Value part : getParts()) {
    auto type = cast<RankedTensorType>(part.getType());
    // C2
    if (type.getRank() != source.getRank())
      return emitOpError("part ") << type << " has " << type.getRank() << " dimensions, but x " << source << " has "
                                  << source.getRank();
    for (unsigned dim = 0; dim < last; ++dim)
      if (failed(checkEqual(*this, {"part", part, dim, dim == 0 ? "rows" : "heads"},
                            {"x", getX(), dim, dim == 0 ? "rows" : "heads"})))
        return failure();
    width += type.getDimSize(last);
  }
  // C3
  if (width != static_cast<uint64_t>(source.getDimSize(last)))
    return emitOpError("the parts have ")
           << width << " columns together, but x " << source << " has " << source.getDimSize(last);
  return success();
}

/// split(weight) -> weights
LogicalResult SplitOp::canonicalize(SplitOp op, PatternRewriter &rewriter) {
  auto weight = op.getX().getDefiningOp<WeightOp>();
  auto isStatic = [](Value part) { return cast<ShapedType>(part.getType()).hasStaticShape(); };
  if (!weight || !llvm::all_of(op.getParts(), isStatic))
    return rewriter.notifyMatchFailure(op, "no weights of static shape");
  SmallVector<Value> parts;
  int64_t begin = 0;
  for (Value part : op.getParts()) {
    int64_t end = begin + cast<ShapedType>(part.getType()).getShape().back();
    parts.push_back(extendRecipe(rewriter, weight, ColumnsAttr::get(op.getContext(), begin, end), part.getType()));
    begin = end;
  }
  rewriter.replaceOp(op, parts);
  return success();
}

LogicalResult SplitOp::fold(FoldAdaptor, SmallVectorImpl<OpFoldResult> &results) {
  if (getParts().size() != 1 || getParts()[0].getType() != getX().getType())
    return failure();
  results.push_back(getX());
  return success();
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

LogicalResult RopeOp::verify() {
  unsigned last = getX().getType().getRank() - 1;
  int64_t pairs = getRope().getInvFreq().size(), channels = getX().getType().getDimSize(last);
  // C1
  if (channels != 2 * pairs)
    return emitOpError("x ") << getX().getType() << " has " << channels << " channels to rotate, but inv_freq has "
                             << pairs << " pairs";
  // C2
  if (failed(checkEqual(*this, {"positions", getPositions(), 0, "entries"}, {"x", getX(), 0, "rows"})))
    return failure();
  // C3
  if (failed(verifyCompatibleShape(getType(), getX().getType())))
    return emitOpError("result is ") << getType() << ", but x is " << getX().getType();
  return success();
}

LogicalResult AttentionOp::verify() {
  // C1
  if (failed(checkAllEqual(*this,
                           {{"rope_query", getRopeQuery(), 0, "tokens"},
                            {"positions", getPositions(), 0, "tokens"},
                            {"slots", getSlots(), 0, "tokens"},
                            {"result", getResult(), 0, "tokens"}},
                           {"query", getQuery(), 0, "tokens"})))
    return failure();
  // C2
  if (failed(checkAllEqual(*this,
                           {{"rope_query", getRopeQuery(), 1, "heads"},
                            {"key", getKey(), 1, "heads"},
                            {"value", getValue(), 1, "heads"},
                            {"result", getResult(), 1, "heads"}},
                           {"query", getQuery(), 1, "heads"})))
    return failure();
  // C3
  if (failed(checkAllEqual(*this,
                           {{"rope_key", getRopeKey(), 0, "entries"},
                            {"value", getValue(), 0, "entries"},
                            {"context_positions", getContextPositions(), 0, "entries"},
                            {"context_slots", getContextSlots(), 0, "entries"}},
                           {"key", getKey(), 0, "entries"})))
    return failure();
  // C4
  if (failed(checkEqual(*this, {"key", getKey(), 2, "channels"}, {"query", getQuery(), 2, "channels"})) ||
      failed(checkEqual(*this, {"rope_key", getRopeKey(), 1, "channels"},
                        {"rope_query", getRopeQuery(), 2, "channels"})) ||
      failed(checkEqual(*this, {"result", getResult(), 2, "channels"}, {"value", getValue(), 2, "channels"})))
    return failure();
  return checkPositiveScale(*this, getScale()); // C5
}

LogicalResult MlaAttentionOp::verify() {
  // C1
  if (failed(checkAllEqual(*this,
                           {{"rope_query", getRopeQuery(), 0, "tokens"},
                            {"latent", getLatent(), 0, "tokens"},
                            {"rope_key", getRopeKey(), 0, "tokens"},
                            {"positions", getPositions(), 0, "tokens"},
                            {"slots", getSlots(), 0, "tokens"},
                            {"result", getResult(), 0, "tokens"}},
                           {"query", getQuery(), 0, "tokens"})))
    return failure();
  // C2
  if (failed(checkAllEqual(*this,
                           {{"rope_query", getRopeQuery(), 1, "heads"},
                            {"w_uk", getWUk(), 0, "heads"},
                            {"w_uv", getWUv(), 0, "heads"},
                            {"result", getResult(), 1, "heads"}},
                           {"query", getQuery(), 1, "heads"})))
    return failure();
  // C3
  Extent latent{"latent", getLatent(), 1, "channels"};
  if (failed(checkEqual(*this, {"w_uk", getWUk(), 1, "rows"}, {"query", getQuery(), 2, "channels"})) ||
      failed(checkEqual(*this, {"w_uk", getWUk(), 2, "columns"}, latent)) ||
      failed(checkEqual(*this, {"w_uv", getWUv(), 1, "rows"}, {"result", getResult(), 2, "channels"})) ||
      failed(checkEqual(*this, {"w_uv", getWUv(), 2, "columns"}, latent)))
    return failure();
  // C4
  if (failed(
          checkEqual(*this, {"rope_key", getRopeKey(), 1, "channels"}, {"rope_query", getRopeQuery(), 2, "channels"})))
    return failure();
  return checkPositiveScale(*this, getScale()); // C5
}

// C6, C7, C8
LogicalResult MlaAttentionOp::verifySymbolUses(SymbolTableCollection &symbolTable) {
  return checkCache(*this, getCacheAttr(), {getLatent(), getRopeKey()}, symbolTable);
}

//===----------------------------------------------------------------------===//
// Experts
//===----------------------------------------------------------------------===//

LogicalResult RouteOp::verify() {
  int64_t numExperts = getLogits().getType().getDimSize(1);
  int64_t topk = getTopk(), groups = getGroups(), topkGroups = getTopkGroups();
  // C1
  if (numExperts % groups != 0)
    return emitOpError("groups(") << groups << ") does not divide the " << numExperts << " experts of logits "
                                  << getLogits().getType();
  // C2
  if (topkGroups > groups)
    return emitOpError("topk_groups(") << topkGroups << ") exceeds groups(" << groups << ")";
  // C3
  int64_t perGroup = numExperts / groups;
  if (topk > topkGroups * perGroup) {
    InFlightDiagnostic diag = emitOpError("topk(")
                              << topk << ") exceeds the " << topkGroups * perGroup << " experts of ";
    if (groups == 1)
      return diag << "logits " << getLogits().getType();
    return diag << "topk_groups(" << topkGroups << ") groups of " << perGroup;
  }
  // C4
  if (getGroupScore() == GroupScore::Top2Sum && groups > 1 && perGroup < 2)
    return emitOpError("group_score top2_sum needs groups of 2 experts or more, but groups(")
           << groups << ") leaves " << perGroup << " of " << numExperts;
  // C5
  if (getBias() && failed(checkEqual(*this, {"bias", getBias(), 0, "elements"}, {"logits", getLogits(), 1, "experts"})))
    return failure();
  // C6
  for (Extent result : {Extent{"weights", getWeights(), 1, "columns"}, Extent{"experts", getExperts(), 1, "columns"}})
    if (result.size() != topk)
      return emitOpError() << result << ", but topk is " << topk;
  if (failed(checkAllEqual(*this, {{"weights", getWeights(), 0, "rows"}, {"experts", getExperts(), 0, "rows"}},
                           {"logits", getLogits(), 0, "rows"})))
    return failure();
  // C7
  if (!getScale().isFinite())
    return emitOpError("scale is ") << getScale().convertToDouble() << ", expected a finite number";
  return success();
}

void RouteOp::getAsmResultNames(OpAsmSetValueNameFn setNameFn) {
  setNameFn(getWeights(), "weights");
  setNameFn(getExperts(), "experts");
}

LogicalResult ExpertsOp::verify() {
  // C1
  if (getGate().getType() != getUp().getType())
    return emitOpError("up is ") << getUp().getType() << ", but gate is " << getGate().getType();
  // C2
  if (failed(checkEqual(*this, {"down", getDown(), 0, "experts"}, {"gate", getGate(), 0, "experts"})) ||
      failed(checkEqual(*this, {"down", getDown(), 1, "rows"}, {"gate", getGate(), 2, "columns"})) ||
      failed(checkEqual(*this, {"down", getDown(), 2, "columns"}, {"gate", getGate(), 1, "rows"})))
    return failure();
  // C3
  Extent columns{"x", getX(), 1, "columns"}, rows{"x", getX(), 0, "rows"};
  if (failed(checkEqual(*this, {"gate", getGate(), 2, "columns"}, columns)))
    return failure();
  // C4
  if (failed(
          checkAllEqual(*this, {{"weights", getWeights(), 0, "rows"}, {"experts", getExperts(), 0, "rows"}}, rows)) ||
      failed(checkEqual(*this, {"experts", getExperts(), 1, "columns"}, {"weights", getWeights(), 1, "columns"})))
    return failure();
  // C5
  if (failed(checkEqual(*this, {"result", getResult(), 1, "columns"}, columns)) ||
      failed(checkEqual(*this, {"result", getResult(), 0, "rows"}, rows)))
    return failure();
  Value residual = getResidual();
  if (residual && (failed(checkEqual(*this, {"residual", residual, 1, "columns"}, columns)) ||
                   failed(checkEqual(*this, {"residual", residual, 0, "rows"}, rows))))
    return failure();
  // C6
  if (getActivations() && failed(verifyActivations(*this, *getActivations())))
    return failure();
  // C7
  std::optional<ArrayRef<int64_t>> members = getMembers();
  int64_t experts = getGate().getType().getDimSize(0);
  // C8
  if (static_cast<int64_t>(getShared()) >= experts)
    return emitOpError("has ") << getShared() << " shared experts, but gate " << getGate().getType() << " has "
                               << experts << " experts in all";
  if (members && getShared())
    return emitOpError("has both members and shared experts");
  if (!members)
    return success();
  if (static_cast<int64_t>(members->size()) != experts)
    return emitOpError("has ") << members->size() << " members, but gate " << getGate().getType() << " has " << experts
                               << " experts";
  return checkMembers([&] { return emitOpError(); }, *members);
}
