// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Weights/Block.h"

#include "codegen/Weights/Elements.h"
#include "dialects/Formats/Runs.h"
#include "dialects/Moe/MoeDialect.h"
#include "dialects/Moe/Recipe.h"
#include "runtime/Support/Text.h"

#include "llvm/ADT/TypeSwitch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

using namespace moec;
namespace steps = mlir::moe;

namespace {

std::string shapeText(const Block &block) {
  std::vector<int64_t> shape = {block.batch, block.rows, block.cols};
  shape.erase(shape.begin(), shape.end() - block.rank);
  return shapeToString(shape);
}

Status checkGroups(const std::string &name, const Block &block, int64_t group) {
  if (block.cols % group == 0)
    return success();
  return Error{"tensor '" + name + "' has rows of " + std::to_string(block.cols) + ", which are no whole groups of " +
               std::to_string(group)};
}

/// A tensor of the checkpoint.
class SourceBlock final : public Block {
public:
  static Result<std::unique_ptr<Block>> open(const std::string &name, const TensorSource &from) {
    MOEC_TRY(TensorView view, from.tensor(name));
    if (view.shape.empty() || view.shape.size() > 3)
      return Error{"tensor '" + name + "' has " + std::to_string(view.shape.size()) +
                   " dimensions, but recipes work on 1 to 3"};
    if (!isWeightType(view.dtype))
      return Error{"tensor '" + name + "' is " + std::string(toString(view.dtype)) +
                   ", but recipes read F32, F16, BF16 and F8_E4M3"};
    return std::unique_ptr<Block>(new SourceBlock(name, std::move(view), from));
  }

  Status read(const Rect &rect, float *out) const override {
    int64_t size = byteSize(dtype);
    for (int64_t r = 0; r < rect.rows; ++r) {
      int64_t first = (rect.batch * rows + rect.row + r) * cols + rect.col;
      float *line = out + r * rect.cols;
      // FP8 alone has codes whose arithmetic differs between kernels; a NaN there is a broken file.
      if (!widen(dtype, view.data + first * size, line, rect.cols)) {
        int64_t c = 0;
        while ((static_cast<uint8_t>(view.data[first + c]) & 0x7F) != 0x7F)
          ++c;
        return Error{"tensor '" + name + "' holds a NaN at [" + std::to_string(rect.row + r) + ", " +
                     std::to_string(rect.col + c) + "], but FP8 weights must be numbers"};
      }
    }
    return success();
  }

  void release(int64_t batch, int64_t row, int64_t count) const override {
    TensorView part = view;
    part.data += (batch * rows + row) * cols * byteSize(dtype);
    part.shape = {count, cols};
    from.release(part);
  }

private:
  SourceBlock(std::string name, TensorView tensor, const TensorSource &from)
      : name(std::move(name)), view(std::move(tensor)), from(from) {
    rank = static_cast<int>(view.shape.size());
    cols = view.shape.back();
    rows = rank > 1 ? view.shape[rank - 2] : 1;
    batch = rank > 2 ? view.shape[0] : 1;
    dtype = view.dtype;
  }

  std::string name;
  TensorView view;
  const TensorSource &from;
};

/// A family of matrices, one after the other.
class StackBlock final : public Block {
public:
  explicit StackBlock(std::vector<std::unique_ptr<Block>> family) : family(std::move(family)) {
    const Block &first = *this->family.front();
    batch = static_cast<int64_t>(this->family.size());
    rows = first.rows;
    cols = first.cols;
    rank = 3;
    dtype = first.dtype;
  }
  Status read(const Rect &rect, float *out) const override {
    Rect inner = rect;
    inner.batch = 0;
    return family[rect.batch]->read(inner, out);
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override { family[batch]->release(0, row, rows); }

private:
  std::vector<std::unique_ptr<Block>> family;
};

/// weight[b, i, j] * scale[b, i / blockRows, j / blockCols], rounded once to `dtype`.
class DequantBlock final : public Block {
public:
  DequantBlock(std::string name, std::unique_ptr<Block> weight, std::unique_ptr<Block> scale, int64_t blockRows,
               int64_t blockCols, DType type)
      : name(std::move(name)), weight(std::move(weight)), scale(std::move(scale)), blockRows(blockRows),
        blockCols(blockCols) {
    batch = this->weight->batch;
    rows = this->weight->rows;
    cols = this->weight->cols;
    rank = this->weight->rank;
    dtype = type;
  }
  Status read(const Rect &rect, float *out) const override {
    MOEC_CHECK(weight->read(rect, out));
    Rect blocks;
    blocks.batch = rect.batch;
    blocks.row = rect.row / blockRows;
    blocks.rows = (rect.row + rect.rows - 1) / blockRows + 1 - blocks.row;
    blocks.col = rect.col / blockCols;
    blocks.cols = (rect.col + rect.cols - 1) / blockCols + 1 - blocks.col;
    std::vector<float> scales(blocks.rows * blocks.cols);
    MOEC_CHECK(scale->read(blocks, scales.data()));
    for (float value : scales)
      if (!std::isfinite(value))
        return Error{"scale of tensor '" + name + "' is not finite"};
    for (int64_t r = 0; r < rect.rows; ++r) {
      const float *line = &scales[((rect.row + r) / blockRows - blocks.row) * blocks.cols];
      float *values = out + r * rect.cols;
      for (int64_t c = 0, end; c < rect.cols; c = end) {
        int64_t block = (rect.col + c) / blockCols;
        end = std::min(rect.cols, (block + 1) * blockCols - rect.col);
        float by = line[block - blocks.col];
        for (int64_t i = c; i < end; ++i)
          values[i] = dtype == DType::F32 ? values[i] * by : multiplyToOdd(values[i], by);
      }
    }
    roundTo(dtype, out, rect.rows * rect.cols);
    return success();
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override { weight->release(batch, row, rows); }

private:
  std::string name;
  std::unique_ptr<Block> weight, scale;
  int64_t blockRows, blockCols;
};

/// Rows [begin, end) of each head of a matrix [heads * R, C].
class HeadRowsBlock final : public Block {
public:
  HeadRowsBlock(std::unique_ptr<Block> input, int64_t heads, int64_t begin, int64_t end)
      : input(std::move(input)), headRows(this->input->rows / heads), begin(begin) {
    batch = heads;
    rows = end - begin;
    cols = this->input->cols;
    rank = 3;
    dtype = this->input->dtype;
  }
  Status read(const Rect &rect, float *out) const override {
    Rect inner = rect;
    inner.batch = 0;
    inner.row = rect.batch * headRows + begin + rect.row;
    return input->read(inner, out);
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override {
    input->release(0, batch * headRows + begin + row, rows);
  }

private:
  std::unique_ptr<Block> input;
  int64_t headRows, begin;
};

class TransposeBlock final : public Block {
public:
  explicit TransposeBlock(std::unique_ptr<Block> block) : input(std::move(block)) {
    batch = input->batch;
    rows = input->cols;
    cols = input->rows;
    rank = input->rank;
    dtype = input->dtype;
  }
  Status read(const Rect &rect, float *out) const override {
    std::vector<float> lines(rect.rows * rect.cols);
    MOEC_CHECK(input->read({rect.batch, rect.col, rect.cols, rect.row, rect.rows}, lines.data()));
    for (int64_t r = 0; r < rect.rows; ++r)
      for (int64_t c = 0; c < rect.cols; ++c)
        out[r * rect.cols + c] = lines[c * rect.rows + r];
    return success();
  }
  void release(int64_t batch, int64_t, int64_t rows) const override {
    // Every row of the input serves every row here.
    if (rows == this->rows)
      input->release(batch, 0, input->rows);
  }

private:
  std::unique_ptr<Block> input;
};

class CastBlock final : public Block {
public:
  CastBlock(std::unique_ptr<Block> block, DType type) : input(std::move(block)) {
    batch = input->batch;
    rows = input->rows;
    cols = input->cols;
    rank = input->rank;
    dtype = type;
  }
  Status read(const Rect &rect, float *out) const override {
    MOEC_CHECK(input->read(rect, out));
    roundTo(dtype, out, rect.rows * rect.cols);
    return success();
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override { input->release(batch, row, rows); }

private:
  std::unique_ptr<Block> input;
};

/// What codes in groups stand for; see `#moe.quantize`. Packing takes the codes themselves, this is for everything
/// else.
class QuantizeBlock final : public Block {
public:
  QuantizeBlock(std::string name, std::unique_ptr<Block> block, steps::QuantizeAttr format, DType scaleType)
      : name(std::move(name)), input(std::move(block)) {
    batch = input->batch;
    rows = input->rows;
    cols = input->cols;
    rank = input->rank;
    dtype = DType::F32;
    panel = {kInt4Rows, format.getGroup(), scaleType};
  }
  Status read(const Rect &rect, float *out) const override {
    int64_t first = rect.col / panel.group, last = (rect.col + rect.cols - 1) / panel.group + 1;
    int64_t begin = first * panel.group, width = (last - first) * panel.group;
    std::vector<float> lines(kInt4Rows * width);
    std::vector<std::byte> packed((last - first) * panel.groupBytes());
    for (int64_t r = 0; r < rect.rows; r += kInt4Rows) {
      int64_t count = std::min(kInt4Rows, rect.rows - r);
      MOEC_CHECK(input->read({rect.batch, rect.row + r, count, begin, width}, lines.data()));
      if (!packInt4(panel, lines.data(), width, width, /*lane=*/0, packed.data()))
        return scaleError(name, panel.scale, lines.data(), count * width);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < rect.cols; ++c)
          out[(r + i) * rect.cols + c] = int4Value(panel, packed.data(), i, rect.col + c - begin);
    }
    return success();
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override { input->release(batch, row, rows); }

private:
  std::string name;
  std::unique_ptr<Block> input;
  Int4Panel panel;
};

/// Zeros behind the last column.
class PadBlock final : public Block {
public:
  PadBlock(std::unique_ptr<Block> block, int64_t size) : input(std::move(block)) {
    batch = input->batch;
    rows = input->rows;
    cols = size;
    rank = input->rank;
    dtype = input->dtype;
  }
  Status read(const Rect &rect, float *out) const override {
    int64_t present = std::clamp<int64_t>(input->cols - rect.col, 0, rect.cols);
    std::fill_n(out, rect.rows * rect.cols, 0.0f);
    if (present == 0)
      return success();
    std::vector<float> lines(rect.rows * present);
    MOEC_CHECK(input->read({rect.batch, rect.row, rect.rows, rect.col, present}, lines.data()));
    for (int64_t r = 0; r < rect.rows; ++r)
      std::copy_n(&lines[r * present], present, out + r * rect.cols);
    return success();
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override { input->release(batch, row, rows); }

private:
  std::unique_ptr<Block> input;
};

/// One tensor on its way through the steps: a block, or the members of a `{e}` family.
struct Item {
  std::string name;
  std::vector<std::unique_ptr<Block>> members;
  bool family = false;
};

/// Runs the steps over the list of tensors.
class RecipeBuilder {
public:
  explicit RecipeBuilder(const TensorSource &from) : from(from) {}

  Status open(const std::vector<std::string> &sources, int64_t count) {
    for (const std::string &pattern : sources) {
      Item item{pattern, {}, pattern.find(steps::kFamilyMarker) != std::string::npos};
      if (item.family && count == 0)
        return Error{"weight source '" + pattern + "' is a family, but its recipe has no stack step"};
      for (int64_t e = 0; e < (item.family ? count : 1); ++e) {
        std::string name = pattern;
        if (item.family)
          name.replace(name.find(steps::kFamilyMarker), steps::kFamilyMarker.size(), std::to_string(e));
        MOEC_TRY(auto block, SourceBlock::open(name, from));
        item.members.push_back(std::move(block));
      }
      items.push_back(std::move(item));
    }
    return success();
  }

  Status apply(mlir::Attribute step) {
    return llvm::TypeSwitch<mlir::Attribute, Status>(step)
        .Case([&](steps::DequantFp8BlockAttr attr) { return dequant(attr); })
        .Case([&](steps::StackAttr attr) { return stack(); })
        .Case([&](steps::HeadRowsAttr attr) {
          return each([&](const std::string &name, std::unique_ptr<Block> &block) -> Status {
            if (block->batch != 1 || block->rows % attr.getHeads() != 0 ||
                attr.getEnd() > block->rows / attr.getHeads())
              return Error{"tensor '" + name + "' is " + shapeText(*block) + ", which has no rows [" +
                           std::to_string(attr.getBegin()) + ", " + std::to_string(attr.getEnd()) + ") for each of " +
                           std::to_string(attr.getHeads()) + " heads"};
            block = std::make_unique<HeadRowsBlock>(std::move(block), attr.getHeads(), attr.getBegin(), attr.getEnd());
            return success();
          });
        })
        .Case([&](steps::TransposeAttr) {
          return each([&](const std::string &, std::unique_ptr<Block> &block) -> Status {
            block = std::make_unique<TransposeBlock>(std::move(block));
            return success();
          });
        })
        .Case([&](steps::CastAttr attr) {
          return each([&](const std::string &name, std::unique_ptr<Block> &block) -> Status {
            MOEC_TRY(DType type, dtypeOf(attr.getType()));
            block = std::make_unique<CastBlock>(std::move(block), type);
            return success();
          });
        })
        .Case([&](steps::QuantizeAttr attr) {
          return each([&](const std::string &name, std::unique_ptr<Block> &block) -> Status {
            MOEC_TRY(DType scale, dtypeOf(attr.getScale()));
            MOEC_CHECK(checkGroups(name, *block, attr.getGroup()));
            block = std::make_unique<QuantizeBlock>(name, std::move(block), attr, scale);
            return success();
          });
        })
        .Case([&](steps::PadAttr attr) {
          return each([&](const std::string &name, std::unique_ptr<Block> &block) -> Status {
            if (attr.getSize() < block->cols)
              return Error{"tensor '" + name + "' is " + shapeText(*block) + ", longer than the " +
                           std::to_string(attr.getSize()) + " it should be padded to"};
            block = std::make_unique<PadBlock>(std::move(block), attr.getSize());
            return success();
          });
        })
        .Default([](mlir::Attribute) -> Status { return Error{"a recipe holds a step that the materializer lacks"}; });
  }

  Result<std::vector<std::unique_ptr<Block>>> take() {
    std::vector<std::unique_ptr<Block>> blocks;
    for (Item &item : items) {
      if (item.family)
        return Error{"weight source '" + item.name + "' is a family that no step stacks"};
      blocks.push_back(std::move(item.members.front()));
    }
    return blocks;
  }

private:
  template <typename Fn> Status each(Fn fn) {
    for (Item &item : items)
      for (auto &block : item.members)
        MOEC_CHECK(fn(item.name, block));
    return success();
  }

  Status dequant(steps::DequantFp8BlockAttr attr) {
    if (items.size() % 2 != 0)
      return Error{"dequant_fp8_block needs pairs of weight and scale, but the recipe has " +
                   std::to_string(items.size()) + " tensors"};
    MOEC_TRY(DType type, dtypeOf(attr.getType()));
    std::vector<Item> results;
    for (size_t i = 0; i < items.size(); i += 2) {
      Item &weights = items[i], &scales = items[i + 1];
      if (weights.members.size() != scales.members.size())
        return Error{"'" + weights.name + "' and '" + scales.name + "' are not families of one size"};
      for (size_t e = 0; e < weights.members.size(); ++e) {
        auto &weight = weights.members[e];
        auto &scale = scales.members[e];
        int64_t rows = (weight->rows + attr.getRows() - 1) / attr.getRows();
        int64_t cols = (weight->cols + attr.getCols() - 1) / attr.getCols();
        if (scale->batch != weight->batch || scale->rows != rows || scale->cols != cols)
          return Error{"tensor '" + scales.name + "' is " + shapeText(*scale) + ", but '" + weights.name + "' " +
                       shapeText(*weight) + " in blocks of " + std::to_string(attr.getRows()) + "x" +
                       std::to_string(attr.getCols()) + " needs [" + std::to_string(rows) + ", " +
                       std::to_string(cols) + "]"};
        weight = std::make_unique<DequantBlock>(weights.name, std::move(weight), std::move(scale), attr.getRows(),
                                                attr.getCols(), type);
      }
      results.push_back(std::move(weights));
    }
    items = std::move(results);
    return success();
  }

  Status stack() {
    for (Item &item : items) {
      if (!item.family)
        continue;
      const Block &first = *item.members.front();
      for (const auto &member : item.members)
        if (member->batch != 1 || member->rows != first.rows || member->cols != first.cols ||
            member->dtype != first.dtype)
          return Error{"the tensors '" + item.name + "' differ in shape or type: " + shapeText(first) + " " +
                       std::string(toString(first.dtype)) + " and " + shapeText(*member) + " " +
                       std::string(toString(member->dtype))};
      std::vector<std::unique_ptr<Block>> family = std::move(item.members);
      item.members.clear();
      item.members.push_back(std::make_unique<StackBlock>(std::move(family)));
      item.family = false;
    }
    return success();
  }

  const TensorSource &from;
  std::vector<Item> items;
};

} // namespace

Result<RecipeBlocks> moec::buildRecipe(const std::vector<std::string> &sources, mlir::ArrayAttr recipe,
                                       const TensorSource &from) {
  RecipeBlocks result;
  llvm::ArrayRef<mlir::Attribute> logical = recipe.getValue();
  if (!logical.empty() &&
      mlir::isa<steps::PackPanelsAttr, steps::PackBlockScalesAttr, steps::PackGroupsAttr>(logical.back())) {
    result.pack = logical.back();
    logical = logical.drop_back();
  }
  // Stacking and cutting by heads, all that may come between, leave groups as they are: packing can quantize instead.
  llvm::SmallVector<mlir::Attribute> values(logical);
  if (mlir::isa_and_nonnull<steps::PackGroupsAttr>(result.pack)) {
    auto *quantize = llvm::find_if(values, llvm::IsaPred<steps::QuantizeAttr>);
    if (quantize == values.end())
      return Error{"a recipe packs codes that none of its steps makes"};
    result.quantize = mlir::cast<steps::QuantizeAttr>(*quantize);
    values.erase(quantize);
    logical = values;
  }
  int64_t count = 0;
  for (mlir::Attribute step : logical)
    if (auto stack = mlir::dyn_cast<steps::StackAttr>(step))
      count = stack.getCount();

  RecipeBuilder builder(from);
  MOEC_CHECK(builder.open(sources, count));
  for (mlir::Attribute step : logical)
    MOEC_CHECK(builder.apply(step));
  MOEC_TRY(result.blocks, builder.take());
  if (result.quantize)
    for (auto [number, block] : llvm::enumerate(result.blocks))
      MOEC_CHECK(checkGroups(sources[std::min(number, sources.size() - 1)], *block, result.quantize.getGroup()));
  return result;
}
