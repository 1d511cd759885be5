// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/Recipe.h"

#include "dialects/Moe/MoeDialect.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/TypeSwitch.h"

#include <numeric>

using namespace mlir;
using namespace mlir::moe;

bool mlir::moe::isFamily(StringRef source) { return source.contains(kFamilyMarker); }

std::string mlir::moe::memberOf(StringRef source, int64_t expert) {
  auto [before, after] = source.split(kFamilyMarker);
  return isFamily(source) ? (before + Twine(expert) + after).str() : source.str();
}

StackAttr mlir::moe::stackOf(ArrayAttr recipe) {
  for (Attribute step : recipe)
    if (auto stack = dyn_cast<StackAttr>(step))
      return stack;
  return nullptr;
}

std::optional<moec::DType> mlir::moe::storedType(Type element) {
  return llvm::TypeSwitch<Type, std::optional<moec::DType>>(element)
      .Case([](Float32Type) { return moec::DType::F32; })
      .Case([](Float16Type) { return moec::DType::F16; })
      .Case([](BFloat16Type) { return moec::DType::BF16; })
      .Case([](Float8E4M3FNType) { return moec::DType::F8E4M3; })
      .Case([](Float8E8M0FNUType) { return moec::DType::F8E8M0; })
      .Case([](IntegerType type) { return type.isSignlessInteger(8) ? std::optional(moec::DType::U8) : std::nullopt; })
      .Default(std::nullopt);
}

namespace {

/// A tensor of the list, as far as the recipe tells.
struct Tensor {
  bool family = false;          ///< one tensor per expert, not stacked yet
  Type element;                 ///< null: whatever the checkpoint has
  QuantizeAttr codes = nullptr; ///< its values are codes and scales of this kind
  bool joined = false;          ///< of several
};

/// The last dimensions of a tensor, as far as the result tells; kDynamic where it does not.
struct Shape {
  SmallVector<int64_t> dims;
  bool complete = true; ///< `dims` are all there are

  void setLast(int64_t size) {
    if (!dims.empty())
      dims.back() = size;
  }
};

class Verifier {
public:
  Verifier(ArrayAttr recipe, ShapedType result, function_ref<InFlightDiagnostic()> emitError)
      : recipe(recipe), result(result), emitError(emitError) {}

  LogicalResult run(ArrayAttr sources) {
    if (failed(readSources(sources)))
      return failure();
    for (auto [index, step] : llvm::enumerate(recipe)) {
      arity.push_back(list.size());
      if (failed(forward(index, step)))
        return failure();
    }
    if (failed(checkEnd()))
      return failure();
    // From the result back to the sources: there every size is known.
    Shape shape{SmallVector<int64_t>(result.getShape())};
    for (size_t index = recipe.size(); index-- > 0;)
      if (failed(backward(index, recipe[index], shape)))
        return failure();
    return success();
  }

private:
  // C1
  LogicalResult readSources(ArrayAttr sources) {
    if (sources.empty())
      return emitError() << "has no source";
    for (Attribute attr : sources) {
      StringRef name = cast<StringAttr>(attr).getValue();
      if (name.empty())
        return emitError() << "has a source with an empty name";
      size_t markers = name.count(kFamilyMarker);
      if (markers > 1)
        return emitError() << "source '" << name << "' holds '" << kFamilyMarker << "' " << markers
                           << " times, expected at most once";
      list.push_back({markers == 1, Type()});
    }
    firstSource = cast<StringAttr>(sources[0]).getValue();
    return success();
  }

  InFlightDiagnostic stepError(size_t index) {
    return emitError() << "recipe[" << index << "] '" << recipe[index] << "' ";
  }

  /// One step over the list: families, numbers of tensors, element types.
  LogicalResult forward(size_t index, Attribute step) {
    if (isa<StackAttr>(step)) { // C3
      if (llvm::none_of(list, [](const Tensor &t) { return t.family; }))
        return stepError(index) << "finds no source with '" << kFamilyMarker << "' to stack";
      for (Tensor &tensor : list)
        tensor.family = false;
      return success();
    }
    if (auto dequant = dyn_cast<DequantAttr>(step)) // C4
      return dequantize(index, dequant);
    if (auto cast = dyn_cast<CastAttr>(step)) {
      for (Tensor &tensor : list)
        tensor = {tensor.family, cast.getType()};
      return success();
    }
    if (auto quantize = dyn_cast<QuantizeAttr>(step)) {
      for (Tensor &tensor : list)
        tensor = {tensor.family, Float32Type::get(step.getContext()), quantize};
      return success();
    }
    if (isa<ScaleColumnsAttr>(step)) {
      for (Tensor &tensor : list)
        tensor = {tensor.family, Float32Type::get(step.getContext())};
      return success();
    }
    if (isa<PackPanelsAttr, PackBlockScalesAttr, PackGroupsAttr>(step)) // C5
      return pack(index, widthOf(step));
    if (auto concat = dyn_cast<ConcatAttr>(step)) // C10
      return join(index, concat);
    if (isa<AppendAttr>(step)) // C11
      return append(index);
    if (isa<SumAttr>(step)) // C12
      return add(index);
    if (isa<HeadRowsAttr, ColumnsAttr, ReshapeAttr, TransposeAttr, PadAttr>(step)) {
      // Groups no longer lie along the rows, or are not whole; heads may lie across the parts of a joined matrix.
      for (Tensor &tensor : list)
        if (tensor.joined || !isa<HeadRowsAttr>(step))
          tensor.codes = nullptr;
      return success();
    }
    return stepError(index) << "is not a step of a recipe"; // C2
  }

  LogicalResult dequantize(size_t index, DequantAttr step) {
    if (index != 0)
      return stepError(index) << "reads tensors of the checkpoint, but is not the first step";
    size_t sources = step.getNumSources();
    if (list.size() % sources != 0)
      return stepError(index) << "needs " << sources << " tensors for each weight, but finds " << list.size()
                              << plural(list.size());
    SmallVector<Tensor> results;
    for (size_t i = 0; i < list.size(); i += sources) {
      for (size_t j = 1; j < sources; ++j)
        if (list[i].family != list[i + j].family)
          return stepError(index) << "takes a tensor per expert beside a single one: tensors " << i << " and " << i + j;
      results.push_back({list[i].family, step.getType(), step.getInt4Groups()});
    }
    list = std::move(results);
    return success();
  }

  LogicalResult append(size_t index) {
    if (list.size() % 2 != 0)
      return stepError(index) << "takes tensors by twos, but finds " << list.size();
    if (llvm::any_of(recipe.getValue().take_front(index), llvm::IsaPred<QuantizeAttr>))
      return stepError(index) << "comes after codes were made";
    if (!llvm::any_of(recipe.getValue().take_front(index), llvm::IsaPred<StackAttr>))
      return stepError(index) << "finds no stack to append to";
    for (size_t pair = 0; 2 * pair < list.size(); ++pair) {
      Tensor first = list[2 * pair], second = list[2 * pair + 1];
      if (first.element != second.element)
        return stepError(index) << "appends " << second.element << " to " << first.element;
      first.codes = first.codes == second.codes ? first.codes : nullptr;
      list[pair] = first;
    }
    list.resize(list.size() / 2);
    return success();
  }

  LogicalResult add(size_t index) {
    if (list.size() % 2 != 0)
      return stepError(index) << "adds tensors by twos, but finds " << list.size();
    if (llvm::any_of(list, [](const Tensor &tensor) { return tensor.family; }))
      return stepError(index) << "adds tensors that no earlier step has stacked";
    list.assign(list.size() / 2, {/*family=*/false, Float32Type::get(recipe.getContext())});
    return success();
  }

  LogicalResult join(size_t index, ConcatAttr step) {
    if (list.size() != step.getRows().size())
      return stepError(index) << "joins " << step.getRows().size() << " tensors, but finds " << list.size();
    const Tensor &first = list.front();
    bool alike = true;
    for (const Tensor &tensor : list) {
      if (tensor.family)
        return stepError(index) << "joins tensors that no earlier step has stacked";
      alike &= tensor.codes == first.codes;
    }
    Tensor all = {/*family=*/false, first.element, alike ? first.codes : nullptr, /*joined=*/true};
    list.assign(1, all);
    return success();
  }

  LogicalResult pack(size_t index, int64_t width) {
    if (list.size() > 2)
      return stepError(index) << "packs one or two tensors, but finds " << list.size();
    if (list.size() == 2 && width % 2 != 0)
      return stepError(index) << "shares a panel between two tensors, but its width " << width << " is odd";
    for (const Tensor &tensor : list)
      if (tensor.family)
        return stepError(index) << "packs tensors that no earlier step has stacked";
    Type element = list.front().element;
    if (isa<PackGroupsAttr>(recipe[index])) {
      if (llvm::any_of(list, [](const Tensor &tensor) { return !tensor.codes; })) // C9
        return stepError(index) << "packs codes and scales, but finds a tensor that no earlier step quantizes";
      element = IntegerType::get(element.getContext(), 8);
    }
    list.assign(1, {/*family=*/false, element, /*codes=*/nullptr});
    return success();
  }

  LogicalResult checkEnd() {
    // C6
    if (list.size() != 1)
      return emitError() << "the recipe leaves " << list.size() << " tensors, expected one";
    if (list[0].family)
      return emitError() << "no step stacks the tensors of source '" << firstSource << "'";
    // C8
    if (list[0].element && list[0].element != result.getElementType())
      return emitError() << "the recipe gives elements of type " << list[0].element << ", but the result is " << result;
    return success();
  }

  /// What must have come before `step` for `shape` to come out of it (C7).
  LogicalResult backward(size_t index, Attribute step, Shape &shape) {
    SmallVector<int64_t> &dims = shape.dims;
    if (auto stack = dyn_cast<StackAttr>(step)) {
      if (!shape.complete)
        return success();
      if (dims.empty())
        return rankError(index, shape, "one dimension or more");
      if (differ(dims.front(), stack.getCount()))
        return sizeError(index, shape, 0, stack.getCount());
      dims.erase(dims.begin());
      return success();
    }
    if (auto heads = dyn_cast<HeadRowsAttr>(step)) {
      if (shape.complete && dims.size() != 3)
        return rankError(index, shape, "three dimensions");
      if (!shape.complete) { // a panel's source may be [H, rows, C]
        dims.insert(dims.begin(), 3 - std::min<size_t>(dims.size(), 3), ShapedType::kDynamic);
        if (dims.size() != 3)
          return rankError(index, shape, "three dimensions");
      }
      int64_t rows = heads.getEnd() - heads.getBegin();
      if (differ(dims[0], heads.getHeads()))
        return sizeError(index, shape, 0, heads.getHeads());
      if (differ(dims[1], rows))
        return sizeError(index, shape, 1, rows);
      shape = {{ShapedType::kDynamic, dims[2]}};
      return success();
    }
    if (auto concat = dyn_cast<ConcatAttr>(step)) {
      if (dims.size() != 2)
        return rankError(index, shape, "two dimensions");
      int64_t rows = std::accumulate(concat.getRows().begin(), concat.getRows().end(), int64_t(0));
      if (differ(dims[0], rows))
        return sizeError(index, shape, 0, rows);
      shape = {{ShapedType::kDynamic, dims[1]}};
      return success();
    }
    if (auto append = dyn_cast<AppendAttr>(step)) {
      if (!shape.complete || dims.size() != 3)
        return rankError(index, shape, "three dimensions");
      // Of the two tensors that it takes, the stack.
      if (!ShapedType::isDynamic(dims[0]) && dims[0] <= append.getCount())
        return stepError(index) << "appends " << append.getCount() << " matrices to one or more, but "
                                << describe(index, shape);
      if (!ShapedType::isDynamic(dims[0]))
        dims[0] -= append.getCount();
      return success();
    }
    if (auto columns = dyn_cast<ColumnsAttr>(step)) {
      if (dims.empty())
        return rankError(index, shape, "one dimension or more");
      if (differ(dims.back(), columns.getEnd() - columns.getBegin()))
        return sizeError(index, shape, dims.size() - 1, columns.getEnd() - columns.getBegin());
      shape.setLast(ShapedType::kDynamic);
      return success();
    }
    if (auto reshape = dyn_cast<ReshapeAttr>(step)) {
      ArrayRef<int64_t> to = reshape.getTo();
      if (shape.complete ? dims.size() != to.size() : dims.size() > to.size())
        return rankError(index, shape, to.size() == 2 ? "two dimensions" : "three dimensions");
      to = to.take_back(dims.size());
      for (auto [dim, size] : llvm::enumerate(to))
        if (differ(dims[dim], size))
          return sizeError(index, shape, dim, size);
      shape = {SmallVector<int64_t>(reshape.getFrom())};
      return success();
    }
    if (isa<TransposeAttr>(step)) {
      if (dims.size() < 2)
        return rankError(index, shape, "two dimensions or more");
      std::swap(dims[dims.size() - 1], dims[dims.size() - 2]);
      return success();
    }
    if (auto pad = dyn_cast<PadAttr>(step)) {
      if (dims.empty())
        return rankError(index, shape, "one dimension or more");
      if (differ(dims.back(), pad.getSize()))
        return sizeError(index, shape, dims.size() - 1, pad.getSize());
      shape.setLast(ShapedType::kDynamic);
      return success();
    }
    if (isa<DequantAttr>(step)) {
      if (shape.complete && dims.size() < 2)
        return rankError(index, shape, "two dimensions or more");
      return success();
    }
    if (isa<PackPanelsAttr, PackBlockScalesAttr>(step))
      return unpack(index, step, shape);
    if (isa<PackGroupsAttr>(step))
      return unpackGroups(index, shape);
    if (auto quantize = dyn_cast<QuantizeAttr>(step)) {
      if (shape.complete && dims.size() < 2)
        return rankError(index, shape, "two dimensions or more");
      if (!dims.empty() && !ShapedType::isDynamic(dims.back()) && !quantize.divides(dims.back()))
        return stepError(index) << "cuts rows into groups of " << quantize.getFormat().unit() << ", but "
                                << describe(index, shape);
    }
    return success();
  }

  /// How many columns a panel's bytes stand for is not always known from their number.
  LogicalResult unpackGroups(size_t index, Shape &shape) {
    if (!shape.complete || shape.dims.size() != 3)
      return rankError(index, shape, "three dimensions [B, panels, bytes]");
    unpackBatch(shape, ShapedType::kDynamic, ShapedType::kDynamic);
    return success();
  }

  /// [1, panels, ...] comes from a matrix or from a batch of one.
  static void unpackBatch(Shape &shape, int64_t rows, int64_t columns) {
    int64_t batch = shape.dims[0];
    shape = batch == 1 ? Shape{{rows, columns}, /*complete=*/false} : Shape{{batch, rows, columns}};
  }

  LogicalResult unpack(size_t index, Attribute step, Shape &shape) {
    int64_t width = widthOf(step);
    if (!shape.complete || shape.dims.size() != 4)
      return rankError(index, shape, "four dimensions [B, panels, C, width]");
    if (differ(shape.dims[3], width))
      return sizeError(index, shape, 3, width);
    int64_t rows = ShapedType::kDynamic;
    if (auto scales = dyn_cast<PackBlockScalesAttr>(step)) {
      int64_t perPanel = width / static_cast<int64_t>(arity[index]);
      int64_t panels = llvm::divideCeil(scales.getN(), perPanel);
      if (differ(shape.dims[1], panels))
        return sizeError(index, shape, 1, panels);
      rows = llvm::divideCeil(scales.getN(), scales.getRows());
    }
    unpackBatch(shape, rows, shape.dims[2]);
    return success();
  }

  LogicalResult rankError(size_t index, const Shape &shape, const char *needed) {
    return stepError(index) << "gives " << needed << ", but " << describe(index, shape);
  }

  LogicalResult sizeError(size_t index, const Shape &shape, size_t dim, int64_t given) {
    return stepError(index) << "gives " << given << " along dimension " << dim << ", but " << describe(index, shape);
  }

  /// "the result is 'T'" for the last step, else the shape that the steps after it need.
  std::string describe(size_t index, const Shape &shape) {
    std::string text;
    llvm::raw_string_ostream os(text);
    if (index + 1 == recipe.size()) {
      os << "the result is '" << result << "'";
      return text;
    }
    os << "the later steps need [";
    if (!shape.complete)
      os << "..., ";
    llvm::interleaveComma(shape.dims, os, [&](int64_t dim) {
      if (ShapedType::isDynamic(dim))
        os << '?';
      else
        os << dim;
    });
    os << "] for the result '" << result << "'";
    return text;
  }

  static const char *plural(size_t count) { return count == 1 ? " tensor" : " tensors"; }

  static bool differ(int64_t found, int64_t expected) { return !ShapedType::isDynamic(found) && found != expected; }

  static int64_t widthOf(Attribute step) {
    return llvm::TypeSwitch<Attribute, int64_t>(step).Case<PackPanelsAttr, PackBlockScalesAttr, PackGroupsAttr>(
        [](auto pack) { return pack.getWidth(); });
  }

  ArrayAttr recipe;
  ShapedType result;
  function_ref<InFlightDiagnostic()> emitError;
  StringRef firstSource;
  SmallVector<Tensor> list;
  SmallVector<size_t> arity; ///< how many tensors each step found
};

} // namespace

LogicalResult mlir::moe::verifyRecipe(ArrayAttr sources, ArrayAttr recipe, ShapedType result,
                                      function_ref<InFlightDiagnostic()> emitError) {
  return Verifier(recipe, result, emitError).run(sources);
}
