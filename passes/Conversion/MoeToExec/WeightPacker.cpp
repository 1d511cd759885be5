// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "passes/Conversion/MoeToExec/WeightPacker.h"

#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace mlir::exec;
using moec::DType;

std::string SymbolNames::claim(const std::string &name, StringRef separator) {
  std::string unique = name;
  for (int number = 2; !taken.insert(unique).second; ++number)
    unique = name + separator.str() + std::to_string(number);
  return unique;
}

static FailureOr<moe::WeightOp> sourceOf(Operation *user, Value tensor) {
  if (auto weight = tensor.getDefiningOp<moe::WeightOp>())
    return weight;
  return user->emitOpError("needs weights that are moe.weight, found ") << tensor;
}

/// "model.layers.3.mlp.experts.{e}.up_proj.weight" -> "model.layers.3.mlp.experts.up_proj".
static std::string nameOf(moe::WeightOp weight, StringRef suffix = "") {
  StringRef source = cast<StringAttr>(weight.getSources()[0]).getValue();
  ArrayRef<Attribute> recipe = weight.getRecipe().getValue();
  if (!recipe.empty() && isa<moe::DequantAttr>(recipe.front()))
    source = source.rsplit('.').first; // codes, whatever their format calls them
  else
    source.consume_back(".weight");
  std::string name;
  for (StringRef rest = source; !rest.empty();) {
    auto [before, after] = rest.split(".{e}");
    name += before;
    rest = after;
  }
  if (!suffix.empty())
    name += "." + suffix.str();
  return name;
}

/// The step that joins several tensors, if that is the last one, which is then taken off `recipe`.
static moe::ConcatAttr takeConcat(ArrayRef<Attribute> &recipe) {
  auto concat = recipe.empty() ? nullptr : dyn_cast<moe::ConcatAttr>(recipe.back());
  if (concat)
    recipe = recipe.drop_back();
  return concat;
}

/// The dequantisation of FP8 in blocks, if that, stacking, appending and joining whole blocks is all that the recipe
/// does to one weight.
static moe::DequantAttr fp8Blocks(moe::WeightOp weight) {
  ArrayRef<Attribute> recipe = weight.getRecipe().getValue();
  moe::ConcatAttr concat = takeConcat(recipe);
  const Attribute *found = llvm::find_if(recipe, llvm::IsaPred<moe::AppendAttr>);
  auto append = found == recipe.end() ? nullptr : cast<moe::AppendAttr>(*found);
  size_t joined = concat ? concat.getRows().size() : append ? 2 : 1;
  if (recipe.empty() || !llvm::all_of(recipe.drop_front(), llvm::IsaPred<moe::StackAttr, moe::AppendAttr>))
    return nullptr;
  auto stored = dyn_cast<moe::DequantAttr>(recipe[0]);
  bool blocks = stored && stored.getFormat() == moe::StoredFormat::Fp8 && stored.getRows() > 0 && stored.getCols() > 0;
  if (!blocks || weight.getSources().size() != 2 * joined)
    return nullptr;
  bool whole =
      !concat || llvm::all_of(concat.getRows().drop_back(), [&](int64_t rows) { return rows % stored.getRows() == 0; });
  if (append && append.getCount() > 1) { // slices begin with blocks
    auto type = cast<RankedTensorType>(weight.getType());
    whole &=
        append.isByRows() ? type.getDimSize(1) % stored.getRows() == 0 : type.getDimSize(2) % stored.getCols() == 0;
  }
  return whole ? stored : nullptr;
}

/// The groups in which the recipe's codes lie, if they do: it quantizes in the end, or takes what is stored so and at
/// most stacks it and appends to it; what it joins then has such groups each.
static moe::QuantizeAttr groupsOf(ArrayRef<Attribute> recipe) {
  takeConcat(recipe);
  if (recipe.empty())
    return nullptr;
  if (auto quantize = dyn_cast<moe::QuantizeAttr>(recipe.back()))
    return quantize;
  auto stored = dyn_cast<moe::DequantAttr>(recipe.front());
  bool kept = stored && llvm::all_of(recipe.drop_front(), llvm::IsaPred<moe::StackAttr, moe::AppendAttr>);
  return kept ? stored.getInt4Groups() : nullptr;
}

WeightOp WeightPacker::getOrCreate(Location loc, const std::string &name, ArrayRef<Attribute> sources,
                                   ArrayRef<Attribute> recipe, ArrayRef<int64_t> shape, Type element) {
  auto type = MemRefType::get(shape, element);
  ArrayAttr sourcesAttr = builder.getArrayAttr(sources), recipeAttr = builder.getArrayAttr(recipe);
  WeightOp &weight = weights[builder.getArrayAttr({sourcesAttr, recipeAttr, TypeAttr::get(type)})];
  if (weight)
    return weight;
  weight = WeightOp::create(builder, loc, names.claim(name, "."), sourcesAttr, recipeAttr, type);
  assert(succeeded(moe::verifyRecipe(sourcesAttr, recipeAttr, type, [&] { return weight.emitError(); })) &&
         "a packed recipe gives what the kernel reads");
  return weight;
}

FailureOr<WeightPacker::Panels> WeightPacker::panels(Operation *user, ValueRange tensors) {
  return pack(user, tensors, /*suffix=*/"", /*transposed=*/false);
}

FailureOr<WeightPacker::Panels> WeightPacker::headPanels(Operation *user, Value tensor, StringRef suffix,
                                                         bool transposed) {
  return pack(user, tensor, suffix, transposed);
}

FailureOr<WeightPacker::Panels> WeightPacker::pack(Operation *user, ValueRange tensors, StringRef suffix,
                                                   bool transposed) {
  SmallVector<moe::WeightOp> parts;
  for (Value tensor : tensors) {
    FailureOr<moe::WeightOp> part = sourceOf(user, tensor);
    if (failed(part))
      return failure();
    parts.push_back(*part);
  }
  moe::WeightOp first = parts.front();
  RankedTensorType type = cast<RankedTensorType>(first.getType());
  for (moe::WeightOp part : parts)
    if (part.getType() != type || part.getRecipe() != first.getRecipe())
      return (user->emitOpError("packs two weights that differ in type or recipe: ")
              << type << " and " << part.getType())
                 .attachNote(part.getLoc())
             << "second weight is here";

  ArrayRef<Attribute> steps = first.getRecipe().getValue();
  moe::ConcatAttr joins = takeConcat(steps);
  if (parts.size() > 1 && joins)
    return user->emitOpError("packs two weights side by side, each joined of several");

  // Shapes: [(B,) N, K] -> [B, panels, K, width].
  int64_t batch = type.getRank() == 3 ? type.getDimSize(0) : 1;
  int64_t n = type.getDimSize(type.getRank() - 2), k = type.getDimSize(type.getRank() - 1);
  if (transposed)
    std::swap(n, k);
  int64_t width = target.panelWidth;
  int64_t panels = llvm::divideCeil(n, width / static_cast<int64_t>(parts.size()));
  MLIRContext *context = builder.getContext();

  Panels result;
  auto make = [&](ArrayRef<Attribute> sources, ArrayRef<Attribute> recipe, StringRef part, int64_t columns,
                  Type element) {
    return getOrCreate(first.getLoc(), nameOf(first, part), sources, recipe, {batch, panels, columns, width}, element);
  };

  moe::DequantAttr blocks = fp8Blocks(first);
  bool sameBlocks = llvm::all_of(parts, [&](moe::WeightOp part) { return fp8Blocks(part) == blocks; });
  if (blocks && sameBlocks && !transposed && target.hasGemm(DType::F8E4M3)) {
    SmallVector<Attribute> weightSources, scaleSources;
    for (moe::WeightOp part : parts)
      for (auto [index, source] : llvm::enumerate(part.getSources()))
        (index % 2 == 0 ? weightSources : scaleSources).push_back(source);
    SmallVector<Attribute> weightRecipe(steps.drop_front()), scaleRecipe = weightRecipe;
    if (joins) {
      auto blocksOf = [&](int64_t rows) -> int64_t { return llvm::divideCeil(rows, blocks.getRows()); };
      weightRecipe.push_back(joins);
      scaleRecipe.push_back(moe::ConcatAttr::get(context, llvm::map_to_vector(joins.getRows(), blocksOf)));
    }
    weightRecipe.push_back(moe::PackPanelsAttr::get(context, width, target.panelColumns(DType::F8E4M3)));
    scaleRecipe.push_back(moe::PackBlockScalesAttr::get(context, width, n, blocks.getRows()));
    result.type = DType::F8E4M3;
    result.scaleCols = blocks.getCols();
    result.weight = make(weightSources, weightRecipe, suffix, k, Float8E4M3FNType::get(context));
    result.scales =
        make(scaleSources, scaleRecipe, "scales", llvm::divideCeil(k, result.scaleCols), builder.getF32Type());
    return result;
  }

  SmallVector<Attribute> sources, recipe(first.getRecipe().getValue());
  for (moe::WeightOp part : parts)
    llvm::append_range(sources, part.getSources().getValue());
  moe::QuantizeAttr quantize = groupsOf(recipe);
  if (quantize && !transposed && target.hasGroups(quantize.getFormat())) {
    recipe.push_back(moe::PackGroupsAttr::get(context, width));
    result.type = DType::U8;
    result.group = quantize.getGroup();
    result.codes = quantize.getFormat().codes;
    result.groupScale = quantize.getFormat().scale;
    result.weight = getOrCreate(first.getLoc(), nameOf(first, suffix), sources, recipe,
                                {batch, panels, quantize.packedBytes(width, k)}, builder.getIntegerType(8));
    return result;
  }
  Type element = type.getElementType();
  std::optional<DType> stored = moe::storedType(element);
  // Bytes of FP8 mean nothing without scales, and those were taken care of above.
  if (!stored || *stored == DType::F8E4M3 || !target.hasGemm(*stored)) {
    element = builder.getF32Type();
    recipe.push_back(moe::CastAttr::get(context, element));
  }
  if (transposed)
    recipe.push_back(moe::TransposeAttr::get(context));
  result.type = *moe::storedType(element);
  recipe.push_back(moe::PackPanelsAttr::get(context, width, target.panelColumns(result.type)));
  result.weight = make(sources, recipe, suffix, k, element);
  return result;
}

FailureOr<WeightOp> WeightPacker::vector(Operation *user, Value tensor) {
  FailureOr<moe::WeightOp> weight = sourceOf(user, tensor);
  if (failed(weight))
    return failure();
  auto type = cast<RankedTensorType>(weight->getType());
  int64_t size = llvm::alignTo(type.getNumElements(), target.vectorMultiple);
  SmallVector<Attribute> recipe(weight->getRecipe().getValue());
  if (!type.getElementType().isF32())
    recipe.push_back(moe::CastAttr::get(builder.getContext(), builder.getF32Type()));
  if (size != type.getNumElements())
    recipe.push_back(moe::PadAttr::get(builder.getContext(), size));
  return getOrCreate(weight->getLoc(), nameOf(*weight), weight->getSources().getValue(), recipe, size,
                     builder.getF32Type());
}

FailureOr<WeightOp> WeightPacker::table(Operation *user, Value tensor, DType &type) {
  FailureOr<moe::WeightOp> weight = sourceOf(user, tensor);
  if (failed(weight))
    return failure();
  auto tensorType = cast<RankedTensorType>(weight->getType());
  SmallVector<Attribute> recipe(weight->getRecipe().getValue());
  Type element = tensorType.getElementType();
  std::optional<DType> stored = moe::storedType(element);
  if (!stored || !target.hasTable(*stored)) {
    element = builder.getF32Type();
    recipe.push_back(moe::CastAttr::get(builder.getContext(), element));
  }
  type = *moe::storedType(element);
  return getOrCreate(weight->getLoc(), nameOf(*weight), weight->getSources().getValue(), recipe, tensorType.getShape(),
                     element);
}
