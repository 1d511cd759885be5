// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/Reference/Recipe.h"

#include "dialects/Formats/Runs.h"
#include "dialects/Moe/Recipe.h"
#include "dialects/Moe/Reference/Dequant.h"
#include "dialects/Moe/Reference/Quantize.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/MathExtras.h"
#include "llvm/Support/raw_ostream.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

using moec::DType;
using moec::Error;
using moec::Result;
using moec::Status;

namespace mlir::moe::reference {

using Shape = std::vector<int64_t>;

static constexpr int64_t kMaxElements = int64_t(1) << 36;

static std::string print(Attribute attr) {
  std::string text;
  llvm::raw_string_ostream(text) << attr;
  return text;
}

static std::string print(llvm::ArrayRef<int64_t> shape) {
  std::string text = "[";
  for (auto [i, dim] : llvm::enumerate(shape))
    text += (i ? ", " : "") + std::to_string(dim);
  return text + "]";
}

static std::string print(DType dtype) { return std::string(moec::toString(dtype)); }

//===----------------------------------------------------------------------===//
// Elements
//===----------------------------------------------------------------------===//

std::vector<std::byte> toBytes(const StoredTensor &tensor) {
  const std::vector<float> &values = tensor.values.data;
  size_t size = moec::byteSize(tensor.dtype);
  std::vector<std::byte> bytes(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) {
    uint8_t f8 = 0;
    uint16_t f16 = 0;
    const void *element = &values[i];
    if (tensor.dtype == DType::F8E4M3)
      element = &(f8 = moec::floatToF8e4m3(values[i]));
    else if (tensor.dtype == DType::F16)
      element = &(f16 = moec::floatToF16(values[i]));
    else if (tensor.dtype == DType::U8)
      element = &(f8 = static_cast<uint8_t>(values[i]));
    else if (tensor.dtype == DType::BF16)
      element = &(f16 = moec::floatToBf16(values[i]));
    std::memcpy(bytes.data() + i * size, element, size);
  }
  return bytes;
}

/// The tensor called `name`, widened.
static Result<StoredTensor> read(const std::string &name, const moec::TensorSource &source) {
  MOEC_TRY(moec::TensorView view, source.tensor(name));
  if (!llvm::is_contained({DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E8M0, DType::U8}, view.dtype))
    return Error{"tensor '" + name + "' is " + print(view.dtype) + ", expected F32, F16, BF16, F8_E4M3 or F8_E8M0"};
  StoredTensor tensor{view.dtype, Tensor<float>(view.shape)};
  for (size_t i = 0; i < tensor.values.data.size(); ++i)
    tensor.values.data[i] = load(view.dtype, view.data, i);
  source.release(view);
  return tensor;
}

//===----------------------------------------------------------------------===//
// Steps
//===----------------------------------------------------------------------===//

/// One element of the list that steps work on: a tensor, or the members of a family.
struct Item {
  std::string name; ///< for messages
  bool isFamily = false;
  std::vector<StoredTensor> members;
};

/// Zeros of `shape`, or a sentence where that is absurdly large.
static Result<Tensor<float>> zeros(Attribute step, const std::string &name, const Shape &shape) {
  int64_t count = 1;
  for (int64_t dim : shape)
    if (llvm::MulOverflow(count, dim, count) || count > kMaxElements)
      return stepError(step, name, "would become " + print(shape) + ", more than 2^36 elements");
  return Tensor<float>(shape);
}

/// [N, K] or [B, N, K] as [B, N, K], with B = 1 for matrices.
static Result<Shape> batched(Attribute step, const std::string &name, const StoredTensor &tensor) {
  Shape shape = tensor.values.shape;
  if (shape.size() == 2)
    shape.insert(shape.begin(), 1);
  if (shape.size() != 3)
    return stepError(step, name, "is " + print(tensor.values.shape) + ", expected rank 2 or 3");
  return shape;
}

/// `part` of each member, one after the other.
static Result<Tensor<float>> stacked(StackAttr step, const Item &family,
                                     llvm::function_ref<const Tensor<float> &(const StoredTensor &)> part) {
  Shape shape = part(family.members.front()).shape;
  shape.insert(shape.begin(), family.members.size());
  MOEC_TRY(Tensor<float> values, zeros(step, family.name, shape));
  for (auto [e, member] : llvm::enumerate(family.members))
    llvm::copy(part(member).data, values.row(e));
  return values;
}

static Result<StoredTensor> apply(StackAttr step, const Item &family) {
  const StoredTensor &first = family.members.front();
  for (auto [e, member] : llvm::enumerate(family.members))
    if (member.dtype != first.dtype || member.values.shape != first.values.shape)
      return stepError(step, family.name,
                       "is " + print(member.dtype) + " " + print(member.values.shape) +
                           " for {e} = " + std::to_string(step.memberAt(e)) + ", expected " + print(first.dtype) + " " +
                           print(first.values.shape) + " as for {e} = " + std::to_string(step.memberAt(0)));
  StoredTensor result;
  result.dtype = first.dtype;
  MOEC_TRY(result.values,
           stacked(step, family, [](const StoredTensor &t) -> const Tensor<float> & { return t.values; }));
  if (first.quantized) {
    result.quantized.emplace(first.quantized->format, first.values.shape);
    for (Tensor<float> Codes::*part : Codes::parts) {
      MOEC_TRY((*result.quantized).*part, stacked(step, family, [&](const StoredTensor &t) -> const Tensor<float> & {
                 return (*t.quantized).*part;
               }));
    }
  }
  return result;
}

static Result<StoredTensor> apply(HeadRowsAttr step, const std::string &name, const StoredTensor &in) {
  int64_t heads = step.getHeads(), begin = step.getBegin(), end = step.getEnd();
  const Shape &shape = in.values.shape;
  if (shape.size() != 2 || shape[0] % heads || end > shape[0] / heads)
    return stepError(step, name, "is " + print(shape) + ", expected [heads * rows, columns] with end <= rows");
  int64_t rows = shape[0] / heads;
  auto cut = [&](const Tensor<float> &from) {
    Tensor<float> to({heads, end - begin, from.shape[1]});
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t r = begin; r < end; ++r)
        std::copy_n(from.row(h * rows + r), from.shape[1], to.row(h, r - begin));
    return to;
  };
  StoredTensor out{in.dtype, cut(in.values)};
  if (in.quantized) {
    out.quantized = in.quantized;
    for (Tensor<float> Codes::*part : Codes::parts)
      (*out.quantized).*part = cut((*in.quantized).*part);
  }
  return out;
}

static Result<StoredTensor> apply(ColumnsAttr step, const std::string &name, const StoredTensor &in) {
  Shape shape = in.values.shape;
  if (shape.empty() || step.getEnd() > shape.back())
    return stepError(step, name, "is " + print(shape) + ", which has no such columns");
  int64_t cols = shape.back(), width = step.getEnd() - step.getBegin();
  shape.back() = width;
  StoredTensor out{in.dtype, Tensor<float>(shape)};
  for (size_t i = 0; i < out.values.data.size(); ++i)
    out.values.data[i] = in.values.data[i / width * cols + step.getBegin() + i % width];
  return out;
}

static Result<StoredTensor> apply(ReshapeAttr step, const std::string &name, const StoredTensor &in) {
  if (in.values.shape != Shape(step.getFrom()))
    return stepError(step, name, "is " + print(in.values.shape));
  return StoredTensor{in.dtype, Tensor<float>(Shape(step.getTo()), in.values.data)};
}

static Result<StoredTensor> apply(SumAttr step, const Item &lhs, const Item &rhs) {
  const StoredTensor &first = lhs.members.front(), &second = rhs.members.front();
  if (second.values.shape != first.values.shape)
    return stepError(step, rhs.name, "is " + print(second.values.shape) + ", expected " + print(first.values.shape));
  StoredTensor result{DType::F32, first.values};
  for (auto [to, more] : llvm::zip_equal(result.values.data, second.values.data))
    to += more;
  return result;
}

static Result<StoredTensor> apply(TransposeAttr step, const std::string &name, const StoredTensor &in) {
  Shape shape = in.values.shape;
  if (shape.size() < 2)
    return stepError(step, name, "is " + print(shape) + ", expected at least 2 dimensions");
  int64_t rank = shape.size(), rows = shape[rank - 2], cols = shape[rank - 1];
  std::swap(shape[rank - 2], shape[rank - 1]);
  StoredTensor out{in.dtype, Tensor<float>(shape)};
  for (size_t i = 0; i < in.values.data.size(); ++i) {
    int64_t col = i % cols, row = i / cols % rows, batch = i / cols / rows;
    out.values.data[(batch * cols + col) * rows + row] = in.values.data[i];
  }
  return out;
}

static Result<StoredTensor> apply(CastAttr step, const std::string &name, const StoredTensor &in) {
  DType type = *storedType(step.getType());
  StoredTensor out{type, in.values};
  for (float &value : out.values.data)
    value = moec::roundOnce(type, value);
  return out;
}

static Result<StoredTensor> apply(ScaleColumnsAttr step, const std::string &name, const StoredTensor &in,
                                  const StoredTensor &by) {
  const Shape &shape = in.values.shape;
  if (shape.empty() || by.values.shape != Shape{shape.back()})
    return stepError(step, name, "is " + print(shape) + ", but is scaled by " + print(by.values.shape));
  StoredTensor out{DType::F32, in.values};
  for (size_t i = 0; i < out.values.data.size(); ++i)
    out.values.data[i] *= by.values.data[i % by.values.data.size()];
  return out;
}

static Result<StoredTensor> apply(PadAttr step, const std::string &name, const StoredTensor &in) {
  Shape shape = in.values.shape;
  if (shape.empty() || step.getSize() < shape.back())
    return stepError(step, name, "is " + print(shape) + ", its last dimension cannot be padded to this size");
  int64_t width = shape.back(), size = step.getSize();
  shape.back() = size;
  MOEC_TRY(Tensor<float> values, zeros(step, name, shape));
  for (size_t i = 0; i < in.values.data.size(); ++i)
    values.data[i / width * size + i % width] = in.values.data[i];
  return StoredTensor{in.dtype, std::move(values)};
}

static Result<StoredTensor> apply(ConcatAttr step, llvm::ArrayRef<Item> list) {
  llvm::ArrayRef<int64_t> rows = step.getRows();
  if (list.size() != rows.size())
    return Error{print(step) + " takes " + std::to_string(rows.size()) + " tensors, but the recipe has " +
                 std::to_string(list.size())};
  const StoredTensor &first = list.front().members.front();
  for (auto [item, count] : llvm::zip_equal(list, rows)) {
    const StoredTensor &tensor = item.members.front();
    const Shape expected = {count, first.values.shape.empty() ? 1 : first.values.shape.back()};
    if (tensor.dtype != first.dtype || tensor.values.shape != expected)
      return stepError(step, item.name,
                       "is " + print(tensor.dtype) + " " + print(tensor.values.shape) + ", expected " +
                           print(first.dtype) + " " + print(expected));
  }
  auto joined = [&](llvm::function_ref<const Tensor<float> &(const StoredTensor &)> part) -> Result<Tensor<float>> {
    const int64_t all = std::accumulate(rows.begin(), rows.end(), int64_t(0)), width = part(first).shape.back();
    MOEC_TRY(Tensor<float> values, zeros(step, list.front().name, {all, width}));
    float *next = values.data.data();
    for (const Item &item : list)
      next = llvm::copy(part(item.members.front()).data, next);
    return values;
  };
  StoredTensor result;
  result.dtype = first.dtype;
  MOEC_TRY(result.values, joined([](const StoredTensor &t) -> const Tensor<float> & { return t.values; }));
  bool alike = llvm::all_of(list, [&](const Item &item) {
    const std::optional<Codes> &codes = item.members.front().quantized;
    return codes && first.quantized && codes->format == first.quantized->format;
  });
  if (alike) {
    result.quantized.emplace(first.quantized->format, result.values.shape);
    for (Tensor<float> Codes::*part : Codes::parts) {
      MOEC_TRY((*result.quantized).*part,
               joined([&](const StoredTensor &t) -> const Tensor<float> & { return (*t.quantized).*part; }));
    }
  }
  return result;
}

/// `stack` [E, R, C], then `count` slices of `matrix`. `C` may be fewer columns than the step's: those of groups.
static Result<Tensor<float>> appended(AppendAttr step, const std::string &name, const Tensor<float> &stack,
                                      const Tensor<float> &matrix) {
  const int64_t count = step.getCount(), experts = stack.dim(0), rows = stack.dim(1), cols = stack.dim(2);
  const Shape expected = step.isByRows() ? Shape{count * rows, cols} : Shape{rows, count * cols};
  if (matrix.shape != expected)
    return stepError(step, name,
                     "is " + print(matrix.shape) + ", expected " + print(expected) + " for matrices of " +
                         print({rows, cols}));
  MOEC_TRY(Tensor<float> all, zeros(step, name, {experts + count, rows, cols}));
  llvm::copy(stack.data, all.data.begin());
  for (int64_t i = 0; i < count; ++i)
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(step.isByRows() ? matrix.row(i * rows + r) : matrix.row(r) + i * cols, cols, all.row(experts + i, r));
  return all;
}

static Result<StoredTensor> apply(AppendAttr step, const Item &stack, const Item &matrix) {
  const StoredTensor &first = stack.members.front(), &second = matrix.members.front();
  if (first.values.shape.size() != 3)
    return stepError(step, stack.name, "is " + print(first.values.shape) + ", expected a stack of matrices");
  if (second.dtype != first.dtype)
    return stepError(step, matrix.name, "is " + print(second.dtype) + ", expected " + print(first.dtype));
  StoredTensor result;
  result.dtype = first.dtype;
  MOEC_TRY(result.values, appended(step, matrix.name, first.values, second.values));
  if (first.quantized && second.quantized && first.quantized->format == second.quantized->format) {
    if (!step.isByRows() && first.values.dim(2) % first.quantized->format.getGroup())
      return stepError(step, matrix.name,
                       "is cut after " + std::to_string(first.values.dim(2)) + " columns, within a group of " +
                           std::to_string(first.quantized->format.getGroup()));
    result.quantized.emplace(first.quantized->format, result.values.shape);
    for (Tensor<float> Codes::*part : {&Codes::codes, &Codes::scales, &Codes::zeros}) {
      MOEC_TRY((*result.quantized).*part,
               appended(step, matrix.name, (*first.quantized).*part, (*second.quantized).*part));
    }
  }
  return result;
}

/// Where the lanes of panels come from: one tensor fills them all, of two (gate, up) each fills one half.
struct Lanes {
  int64_t width;       ///< lanes of a panel
  int64_t rowsOfPanel; ///< rows of each tensor in a panel
  int64_t panels;

  size_t sourceOf(int64_t lane) const { return lane / rowsOfPanel; }
  int64_t rowOf(int64_t panel, int64_t lane) const { return panel * rowsOfPanel + lane % rowsOfPanel; }
};

/// The lanes of `rows` rows of each tensor in `list`, which must be one tensor or two alike.
static Result<Lanes> lanesOf(Attribute step, llvm::ArrayRef<Item> list, int64_t width, int64_t rows) {
  if (list.size() > 2)
    return Error{print(step) + " takes one or two tensors, but the recipe has " + std::to_string(list.size())};
  const StoredTensor &first = list.front().members.front(), &last = list.back().members.front();
  if (first.dtype != last.dtype || first.values.shape != last.values.shape)
    return stepError(step, list.back().name,
                     "is " + print(last.dtype) + " " + print(last.values.shape) + ", expected " + print(first.dtype) +
                         " " + print(first.values.shape) + " as '" + list.front().name + "'");
  if (width % int64_t(list.size()))
    return Error{print(step) + " takes two tensors, but its width is odd"};
  int64_t rowsOfPanel = width / int64_t(list.size());
  return Lanes{width, rowsOfPanel, int64_t(llvm::divideCeil(rows, rowsOfPanel))};
}

static Result<StoredTensor> apply(PackPanelsAttr step, llvm::ArrayRef<Item> list) {
  const std::string &name = list.front().name;
  const StoredTensor &first = list.front().members.front();
  MOEC_TRY(Shape shape, batched(step, name, first));
  int64_t batch = shape[0], n = shape[1], k = shape[2];
  MOEC_TRY(Lanes lanes, lanesOf(step, list, step.getWidth(), n));
  MOEC_TRY(Tensor<float> out, zeros(step, name, {batch, lanes.panels, k, lanes.width}));
  float *element = out.data.data();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t panel = 0; panel < lanes.panels; ++panel)
      for (int64_t begin = 0; begin < k; begin += step.getColumns())
        for (int64_t lane = 0; lane < lanes.width; ++lane)
          for (int64_t col = begin; col < std::min(k, begin + step.getColumns()); ++col, ++element) {
            const Tensor<float> &in = list[lanes.sourceOf(lane)].members.front().values;
            int64_t row = lanes.rowOf(panel, lane);
            if (row < n)
              *element = in.data[(b * n + row) * k + col];
          }
  return StoredTensor{first.dtype, std::move(out)};
}

/// The bytes of a scale, little-endian.
static SmallVector<uint8_t, 4> bytesOf(DType type, float scale) {
  uint32_t bits = 0;
  switch (type) {
  case DType::F16:
    bits = moec::floatToF16(scale);
    break;
  case DType::BF16:
    bits = moec::floatToBf16(scale);
    break;
  case DType::F8E4M3:
    bits = moec::floatToF8e4m3(scale);
    break;
  case DType::F8E8M0:
    bits = int(std::log2(scale)) + 127;
    break;
  default:
    std::memcpy(&bits, &scale, sizeof(scale));
  }
  SmallVector<uint8_t, 4> bytes;
  for (int64_t i = 0; i < moec::byteSize(type); ++i)
    bytes.push_back(bits >> (8 * i) & 0xff);
  return bytes;
}

static Result<StoredTensor> apply(PackGroupsAttr step, llvm::ArrayRef<Item> list) {
  const std::string &name = list.front().name;
  for (const Item &item : list)
    if (!item.members.front().quantized)
      return stepError(step, item.name, "is not quantized");
  const StoredTensor &first = list.front().members.front();
  QuantizeAttr format = first.quantized->format;
  DType scaleType = *storedType(format.getScale());
  MOEC_TRY(Shape shape, batched(step, name, first));
  int64_t batch = shape[0], n = shape[1], k = shape[2], group = format.getGroup();
  int64_t groups = llvm::divideCeil(k, group), unit = format.getFormat().unit(), width = step.getWidth();
  bool nibbles = format.getFormat().bits() == 4;
  MOEC_TRY(Lanes lanes, lanesOf(step, list, width, n));
  MOEC_TRY(Tensor<float> out, zeros(step, name, {batch, lanes.panels, format.packedBytes(width, k)}));
  float *byte = out.data.data();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t panel = 0; panel < lanes.panels; ++panel) {
      // An element of a lane's row, of `perRow`; `otherwise` past the last row.
      auto at = [&](Tensor<float> Codes::*part, int64_t lane, int64_t index, int64_t perRow, float otherwise) {
        int64_t row = lanes.rowOf(panel, lane);
        const Codes &codes = *list[lanes.sourceOf(lane)].members.front().quantized;
        return row < n ? (codes.*part).data[(b * n + row) * perRow + index] : otherwise;
      };
      auto put = [&](DType type, float scale) {
        for (uint8_t bits : bytesOf(type, scale))
          *byte++ = bits;
      };
      // A row of zeros has the global scale of the last one.
      if (scaleType == DType::F8E4M3)
        for (int64_t lane = 0; lane < width; ++lane) {
          int64_t row = std::min(lanes.rowOf(panel, lane), n - 1);
          put(DType::F32, list[lanes.sourceOf(lane)].members.front().quantized->globals.data[b * n + row]);
        }
      auto codeAt = [&](int64_t lane, int64_t col) {
        return byteOf(format.getCodes(), col < k ? at(&Codes::codes, lane, col, k, 0) : 0);
      };
      for (int64_t begin = 0; begin < k; begin += unit) {
        int64_t end = std::min(k, begin + unit);
        for (int64_t g = begin / group; g * group < end; ++g)
          for (int64_t lane = 0; lane < width; ++lane)
            put(scaleType, at(&Codes::scales, lane, g, groups, scaleType == DType::F8E8M0 ? 1 : 0));
        if (format.getCodes() == CodeFormat::Int4Zero)
          for (int64_t lane = 0; lane < width; ++lane)
            *byte++ = at(&Codes::zeros, lane, begin / group, groups, 0);
        for (int64_t t = begin; t < end; t += nibbles ? 32 : 4)
          for (int64_t q = 0; q < (nibbles ? 16 : 4); q += 4)
            for (int64_t lane = 0; lane < width; ++lane)
              for (int64_t j = 0; j < 4; ++j)
                *byte++ = codeAt(lane, t + q + j) + (nibbles ? 16 * codeAt(lane, t + 16 + q + j) : 0);
      }
    }
  return StoredTensor{DType::U8, std::move(out)};
}

static Result<StoredTensor> apply(PackBlockScalesAttr step, llvm::ArrayRef<Item> list) {
  const std::string &name = list.front().name;
  const StoredTensor &first = list.front().members.front();
  MOEC_TRY(Shape shape, batched(step, name, first));
  int64_t batch = shape[0], rowBlocks = shape[1], colBlocks = shape[2], n = step.getN();
  if (rowBlocks != int64_t(llvm::divideCeil(n, step.getRows())))
    return stepError(step, name,
                     "has " + std::to_string(rowBlocks) + " blocks of rows, expected one for every " +
                         std::to_string(step.getRows()) + " of " + std::to_string(n) + " rows");
  MOEC_TRY(Lanes lanes, lanesOf(step, list, step.getWidth(), n));
  MOEC_TRY(Tensor<float> out, zeros(step, name, {batch, lanes.panels, colBlocks, lanes.width}));
  float *element = out.data.data();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t panel = 0; panel < lanes.panels; ++panel)
      for (int64_t block = 0; block < colBlocks; ++block)
        for (int64_t lane = 0; lane < lanes.width; ++lane, ++element) {
          const Tensor<float> &in = list[lanes.sourceOf(lane)].members.front().values;
          int64_t row = lanes.rowOf(panel, lane);
          if (row < n)
            *element = in.data[(b * rowBlocks + row / step.getRows()) * colBlocks + block];
        }
  return StoredTensor{DType::F32, std::move(out)};
}

//===----------------------------------------------------------------------===//
// Recipes
//===----------------------------------------------------------------------===//

/// Applies a step that maps tensors one to one.
template <typename StepAttr> static Status mapEach(StepAttr step, std::vector<Item> &list) {
  for (Item &item : list)
    for (StoredTensor &tensor : item.members) {
      MOEC_TRY(tensor, apply(step, item.name, tensor));
    }
  return moec::success();
}

static Status scaleEach(ScaleColumnsAttr step, std::vector<Item> &list, const moec::TensorSource &source) {
  MOEC_TRY(StoredTensor by, read(step.getBy().str(), source));
  for (Item &item : list)
    for (StoredTensor &tensor : item.members) {
      MOEC_TRY(tensor, apply(step, item.name, tensor, by));
    }
  return moec::success();
}

static Status quantizeEach(QuantizeAttr step, StackAttr stack, std::vector<Item> &list,
                           const moec::MomentSource *moments) {
  for (Item &item : list)
    for (auto [place, tensor] : llvm::enumerate(item.members)) {
      // Matrices of a family are its members, stacked or not yet.
      auto memberOfMatrix = [&, first = int64_t(place)](int64_t matrix) {
        return isFamily(item.name) ? stack.memberAt(first + matrix) : first + matrix;
      };
      MOEC_TRY(tensor, quantize(step, item.name, tensor, memberOfMatrix, moments));
    }
  return moec::success();
}

static Status applyStep(StackAttr step, std::vector<Item> &list) {
  bool found = false;
  for (Item &item : list) {
    if (!item.isFamily)
      continue;
    found = true;
    MOEC_TRY(StoredTensor stacked, apply(step, item));
    item.members.clear();
    item.members.push_back(std::move(stacked));
    item.isFamily = false;
  }
  if (!found)
    return Error{print(step) + " finds no source with '{e}' in its name"};
  return moec::success();
}

/// Applies a step that makes one tensor of each two.
template <typename StepAttr> static Status reducePairs(StepAttr step, std::vector<Item> &list) {
  if (list.size() % 2)
    return Error{print(step) + " takes tensors by twos, but the recipe has " + std::to_string(list.size())};
  std::vector<Item> pairs;
  for (size_t i = 0; i < list.size(); i += 2) {
    if (list[i].isFamily || list[i + 1].isFamily)
      return stepError(step, list[i].name, "is a family, expected it to be stacked first");
    MOEC_TRY(StoredTensor joined, apply(step, list[i], list[i + 1]));
    pairs.push_back({list[i].name, false, {}});
    pairs.back().members.push_back(std::move(joined));
  }
  list = std::move(pairs);
  return moec::success();
}

/// Applies a step that makes one tensor of the whole list.
template <typename StepAttr> static Status reduce(StepAttr step, std::vector<Item> &list) {
  for (const Item &item : list)
    if (item.isFamily)
      return stepError(step, item.name, "is a family, expected it to be stacked first");
  MOEC_TRY(StoredTensor result, apply(step, llvm::ArrayRef<Item>(list)));
  list.resize(1);
  list.front().members.front() = std::move(result);
  return moec::success();
}

/// The list of tensors that the first step finds, `perTensor` sources for each, which `read` makes of their names.
static Result<std::vector<Item>>
readSources(ArrayAttr sources, StackAttr stack, size_t perTensor,
            llvm::function_ref<Result<StoredTensor>(llvm::ArrayRef<std::string>)> read) {
  std::vector<Item> list;
  if (sources.empty())
    return Error{"a weight needs at least one source"};
  if (sources.size() % perTensor)
    return Error{"a weight takes " + std::to_string(perTensor) + " tensors of the checkpoint, but the recipe has " +
                 std::to_string(sources.size())};
  for (size_t first = 0; first < sources.size(); first += perTensor) {
    std::vector<std::string> names;
    for (Attribute attr : sources.getValue().slice(first, perTensor)) {
      auto name = dyn_cast<StringAttr>(attr);
      if (!name)
        return Error{"source " + print(attr) + " of a weight is no string"};
      names.push_back(name.str());
    }
    Item item{names.front(), isFamily(names.front()), {}};
    for (const std::string &name : names)
      if (isFamily(name) != item.isFamily)
        return Error{"'" + name + "' does not go with '" + item.name + "': only one is a family"};
    if (item.isFamily && !stack)
      return Error{"source '" + item.name + "' is a family, but the recipe has no #moe.stack"};
    for (int64_t i = 0; i < (item.isFamily ? stack.getCount() : 1); ++i) {
      std::vector<std::string> members;
      for (const std::string &name : names)
        members.push_back(item.isFamily ? memberOf(name, stack.memberAt(i)) : name);
      MOEC_TRY(StoredTensor tensor, read(members));
      item.members.push_back(std::move(tensor));
    }
    list.push_back(std::move(item));
  }
  return list;
}

Result<StoredTensor> evaluateRecipe(ArrayAttr sources, ArrayAttr recipe, const moec::TensorSource &source,
                                    const moec::MomentSource *moments) {
  llvm::ArrayRef<Attribute> steps = recipe.getValue();
  auto stored = steps.empty() ? nullptr : dyn_cast<DequantAttr>(steps.front());
  if (stored)
    steps = steps.drop_front();
  MOEC_TRY(std::vector<Item> list, readSources(sources, stackOf(recipe), stored ? stored.getNumSources() : 1,
                                               [&](llvm::ArrayRef<std::string> names) {
                                                 return stored ? dequantize(stored, names, source)
                                                               : read(names.front(), source);
                                               }));
  for (Attribute attr : steps) {
    Status status =
        llvm::TypeSwitch<Attribute, Status>(attr)
            .Case([&](StackAttr step) { return applyStep(step, list); })
            .Case<AppendAttr, SumAttr>([&](auto step) { return reducePairs(step, list); })
            .Case<HeadRowsAttr, ColumnsAttr, ReshapeAttr, TransposeAttr, CastAttr, PadAttr>(
                [&](auto step) { return mapEach(step, list); })
            .Case([&](ScaleColumnsAttr step) { return scaleEach(step, list, source); })
            .Case([&](QuantizeAttr step) { return quantizeEach(step, stackOf(recipe), list, moments); })
            .Case<ConcatAttr, PackPanelsAttr, PackBlockScalesAttr, PackGroupsAttr>(
                [&](auto step) { return reduce(step, list); })
            .Default([](Attribute step) { return Error{"the recipe step " + print(step) + " is not known"}; });
    if (!status)
      return status.takeError();
  }
  if (list.size() != 1)
    return Error{"the recipe leaves " + std::to_string(list.size()) + " tensors, expected 1"};
  return std::move(list.front().members.front());
}

} // namespace mlir::moe::reference
