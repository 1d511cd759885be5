// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Weights/Block.h"

#include "codegen/Weights/Elements.h"
#include "codegen/Weights/Quantizer.h"
#include "dialects/Formats/Gguf.h"
#include "dialects/Formats/Runs.h"
#include "dialects/Formats/StoredMatrix.h"
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

/// A tensor of the checkpoint.
class SourceBlock final : public Block {
public:
  static Result<std::unique_ptr<Block>> open(const std::string &name, const TensorSource &from) {
    MOEC_TRY(TensorView view, from.tensor(name));
    if (view.shape.empty() || view.shape.size() > 3)
      return Error{"tensor '" + name + "' has " + std::to_string(view.shape.size()) +
                   " dimensions, but recipes work on 1 to 3"};
    if (!isWeightType(view.dtype) && view.dtype != DType::F8E8M0 && view.dtype != DType::U8)
      return Error{"tensor '" + name + "' is " + std::string(toString(view.dtype)) +
                   ", but recipes read F32, F16, BF16 and F8_E4M3, and F8_E8M0 for scales"};
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

  bool storedRows(const Rect &rect, StoredRows &out) const override {
    int64_t size = byteSize(dtype);
    out.type = dtype;
    out.data = view.data + ((rect.batch * rows + rect.row) * cols + rect.col) * size;
    out.stride = cols * size;
    return dtype == DType::F32 || dtype == DType::BF16;
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
  Status readCodes(const Rect &rect, uint8_t *codes, uint16_t *scales) const override {
    Rect inner = rect;
    inner.batch = 0;
    return family[rect.batch]->readCodes(inner, codes, scales);
  }
  bool storedRows(const Rect &rect, StoredRows &out) const override {
    Rect inner = rect;
    inner.batch = 0;
    return family[rect.batch]->storedRows(inner, out);
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override { family[batch]->release(0, row, rows); }

private:
  std::vector<std::unique_ptr<Block>> family;
};

/// What the tensors of a quantized weight stand for; see `#moe.dequant`.
class StoredBlock final : public Block {
public:
  static Result<std::unique_ptr<Block>> open(steps::DequantAttr step, const std::vector<std::string> &names,
                                             const TensorSource &from) {
    if (const GgufType *blocks = step.getBlocks()) {
      MOEC_TRY(auto matrix, openBlocks(*blocks, names.front(), from));
      return std::unique_ptr<Block>(new StoredBlock(std::move(matrix)));
    }
    MOEC_TRY(DType type, dtypeOf(step.getType()));
    MOEC_TRY(TensorView codes, from.tensor(names.front()));
    if (codes.shape.size() != 2)
      return Error{"tensor '" + names.front() + "' has " + std::to_string(codes.shape.size()) +
                   " dimensions, but quantized weights have 2"};
    Format format = step.getDescription();
    auto [rows, cols] = logicalShape(format.packing, codes.shape);
    StoredNames stored{names.front().substr(0, names.front().rfind('.')), names};
    MOEC_TRY(auto matrix, openQuantized(format, stored, rows, cols, from, type));
    return std::unique_ptr<Block>(new StoredBlock(std::move(matrix)));
  }
  Status read(const Rect &rect, float *out) const override {
    return matrix->read(rect.row, rect.rows, rect.col, rect.cols, out);
  }
  Status readCodes(const Rect &rect, uint8_t *codes, uint16_t *scales) const override {
    return matrix->readCodes(rect.row, rect.rows, rect.col, rect.cols, codes, scales);
  }
  bool storedRows(const Rect &rect, StoredRows &out) const override {
    return matrix->storedRows(rect.row, rect.rows, rect.col, rect.cols, out) == rect.cols;
  }
  void release(int64_t, int64_t row, int64_t rows) const override { matrix->release(row, rows); }

private:
  explicit StoredBlock(std::unique_ptr<StoredMatrix> stored) : matrix(std::move(stored)) {
    rows = matrix->rows;
    cols = matrix->cols;
    dtype = matrix->dtype;
  }

  std::unique_ptr<StoredMatrix> matrix;
};

/// What a step makes of one block: of the same shape, and with the same rows behind each row, unless it says otherwise.
class StepBlock : public Block {
public:
  void release(int64_t batch, int64_t row, int64_t rows) const override { input->release(batch, row, rows); }

protected:
  StepBlock(std::unique_ptr<Block> block, DType type) : input(std::move(block)) {
    batch = input->batch;
    rows = input->rows;
    cols = input->cols;
    rank = input->rank;
    dtype = type;
  }
  explicit StepBlock(std::unique_ptr<Block> block) : StepBlock(std::move(block), DType::F32) { dtype = input->dtype; }

  std::unique_ptr<Block> input;
};

/// Rows [begin, end) of each head of a matrix [heads * R, C].
class HeadRowsBlock final : public StepBlock {
public:
  HeadRowsBlock(std::unique_ptr<Block> block, int64_t heads, int64_t begin, int64_t end)
      : StepBlock(std::move(block)), headRows(rows / heads), begin(begin) {
    batch = heads;
    rows = end - begin;
    rank = 3;
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
  int64_t headRows, begin;
};

/// Some columns of each row.
class ColumnsBlock final : public StepBlock {
public:
  // `release` goes on with whole rows: others are made of the rest, and a row is released where it is read anew.
  ColumnsBlock(std::unique_ptr<Block> block, int64_t begin, int64_t end) : StepBlock(std::move(block)), begin(begin) {
    cols = end - begin;
  }
  Status read(const Rect &rect, float *out) const override { return input->read(inner(rect), out); }
  bool storedRows(const Rect &rect, StoredRows &out) const override { return input->storedRows(inner(rect), out); }

private:
  Rect inner(Rect rect) const {
    rect.col += begin;
    return rect;
  }

  int64_t begin;
};

/// The elements of each index of the first dimension under another shape.
class ReshapeBlock final : public StepBlock {
public:
  ReshapeBlock(std::unique_ptr<Block> block, llvm::ArrayRef<int64_t> to) : StepBlock(std::move(block)) {
    rank = static_cast<int>(to.size());
    batch = rank == 3 ? to[0] : 1;
    rows = to[rank - 2];
    cols = to[rank - 1];
  }
  Status read(const Rect &rect, float *out) const override {
    for (int64_t r = 0; r < rect.rows; ++r) {
      auto [index, at] = placeOf(rect.batch, rect.row + r);
      at += rect.col;
      // A row here may lie in several of the input's.
      for (int64_t left = rect.cols, here; left > 0; left -= here, at += here, out += here) {
        here = std::min(left, input->cols - at % input->cols);
        Rect part =
            input->rank == 3 ? Rect{index, at / input->cols, 1, at % input->cols, here} : Rect{0, index, 1, at, here};
        MOEC_CHECK(input->read(part, out));
      }
    }
    return success();
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override {
    if (rank == 3 && rows < this->rows) // others need the rest of the index
      return;
    int64_t first = rank == 3 ? batch : row, count = rank == 3 ? 1 : rows;
    if (input->rank == 2)
      return input->release(0, first, count);
    for (int64_t index = first; index < first + count; ++index)
      input->release(index, 0, input->rows);
  }

private:
  /// The index of the first dimension that a row belongs to, and where it begins there.
  std::pair<int64_t, int64_t> placeOf(int64_t batch, int64_t row) const {
    return rank == 3 ? std::pair(batch, row * cols) : std::pair(row, int64_t(0));
  }
};

/// One tensor and another of its shape, element by element.
class SumBlock final : public StepBlock {
public:
  SumBlock(std::unique_ptr<Block> first, std::unique_ptr<Block> second)
      : StepBlock(std::move(first), DType::F32), other(std::move(second)) {}
  Status read(const Rect &rect, float *out) const override {
    MOEC_CHECK(input->read(rect, out));
    std::vector<float> more(rect.rows * rect.cols);
    MOEC_CHECK(other->read(rect, more.data()));
    for (size_t i = 0; i < more.size(); ++i)
      out[i] += more[i];
    return success();
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override {
    input->release(batch, row, rows);
    other->release(batch, row, rows);
  }

private:
  std::unique_ptr<Block> other;
};

/// The rows of several matrices, one after the other.
class ConcatBlock final : public Block {
public:
  /// `group` is the number of columns that share a scale, if the parts hold codes.
  ConcatBlock(std::vector<std::unique_ptr<Block>> blocks, int64_t group) : parts(std::move(blocks)), group(group) {
    cols = parts.front()->cols;
    rows = 0;
    dtype = parts.front()->dtype;
    for (const auto &part : parts)
      rows += part->rows;
  }
  Status read(const Rect &rect, float *out) const override {
    return each(rect, [&](const Block &part, const Rect &inner, int64_t before) {
      return part.read(inner, out + before * rect.cols);
    });
  }
  Status readCodes(const Rect &rect, uint8_t *codes, uint16_t *scales) const override {
    return each(rect, [&](const Block &part, const Rect &inner, int64_t before) {
      return part.readCodes(inner, codes + before * rect.cols, scales + before * (rect.cols / group));
    });
  }
  bool storedRows(const Rect &rect, StoredRows &out) const override {
    bool stored = false;
    return each(rect,
                [&](const Block &part, const Rect &inner, int64_t) {
                  stored = inner.rows == rect.rows && part.storedRows(inner, out);
                  return success();
                })
               .ok() &&
           stored;
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override {
    (void)each({batch, row, rows, 0, cols}, [&](const Block &part, const Rect &inner, int64_t) {
      part.release(batch, inner.row, inner.rows);
      return success();
    });
  }

private:
  /// Calls `fn` with each part that has rows of `rect`, these rows of it, and how many there are before them.
  template <typename Fn> Status each(const Rect &rect, Fn fn) const {
    int64_t first = 0;
    for (const auto &part : parts) {
      Rect inner = rect;
      inner.row = std::max<int64_t>(rect.row - first, 0);
      inner.rows = std::min(rect.row + rect.rows - first, part->rows) - inner.row;
      if (inner.rows > 0)
        MOEC_CHECK(fn(*part, inner, first + inner.row - rect.row));
      first += part->rows;
    }
    return success();
  }

  std::vector<std::unique_ptr<Block>> parts;
  int64_t group;
};

/// A stack of matrices, and behind it slices of one more.
class AppendBlock final : public Block {
public:
  AppendBlock(std::unique_ptr<Block> first, std::unique_ptr<Block> more, bool byRows, int64_t count)
      : stack(std::move(first)), matrix(std::move(more)), byRows(byRows) {
    batch = stack->batch + count;
    rows = stack->rows;
    cols = stack->cols;
    rank = 3;
    dtype = stack->dtype;
  }
  Status read(const Rect &rect, float *out) const override {
    auto [block, inner] = placeOf(rect);
    return block->read(inner, out);
  }
  Status readCodes(const Rect &rect, uint8_t *codes, uint16_t *scales) const override {
    auto [block, inner] = placeOf(rect);
    return block->readCodes(inner, codes, scales);
  }
  bool storedRows(const Rect &rect, StoredRows &out) const override {
    auto [block, inner] = placeOf(rect);
    return block->storedRows(inner, out);
  }
  void release(int64_t batch, int64_t row, int64_t rows) const override {
    auto [block, inner] = placeOf({batch, row, rows, 0, cols});
    // Slices by columns share the pages of a row.
    if (block == stack.get() || byRows || batch == this->batch - 1)
      block->release(inner.batch, inner.row, inner.rows);
  }

private:
  std::pair<const Block *, Rect> placeOf(Rect rect) const {
    if (rect.batch < stack->batch)
      return {stack.get(), rect};
    int64_t slice = rect.batch - stack->batch;
    rect.batch = 0;
    (byRows ? rect.row : rect.col) += slice * (byRows ? rows : cols);
    return {matrix.get(), rect};
  }

  std::unique_ptr<Block> stack, matrix;
  bool byRows;
};

class TransposeBlock final : public StepBlock {
public:
  explicit TransposeBlock(std::unique_ptr<Block> block) : StepBlock(std::move(block)) { std::swap(rows, cols); }
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
};

class CastBlock final : public StepBlock {
public:
  CastBlock(std::unique_ptr<Block> block, DType type) : StepBlock(std::move(block), type) {}
  Status read(const Rect &rect, float *out) const override {
    MOEC_CHECK(input->read(rect, out));
    roundTo(dtype, out, rect.rows * rect.cols);
    return success();
  }
};

/// Each column by an element of a vector.
class ScaleColumnsBlock final : public StepBlock {
public:
  static Result<std::unique_ptr<Block>> open(const std::string &name, std::unique_ptr<Block> input,
                                             const std::string &by, const TensorSource &from) {
    MOEC_TRY(auto vector, SourceBlock::open(by, from));
    if (vector->rank != 1 || vector->cols != input->cols)
      return Error{"tensor '" + by + "' is " + shapeText(*vector) + ", but scales the columns of '" + name +
                   "', which is " + shapeText(*input)};
    std::vector<float> scales(vector->cols);
    MOEC_CHECK(vector->read({0, 0, 1, 0, vector->cols}, scales.data()));
    return std::unique_ptr<Block>(new ScaleColumnsBlock(std::move(input), std::move(scales)));
  }
  Status read(const Rect &rect, float *out) const override {
    MOEC_CHECK(input->read(rect, out));
    for (int64_t r = 0; r < rect.rows; ++r)
      for (int64_t c = 0; c < rect.cols; ++c)
        out[r * rect.cols + c] *= scales[rect.col + c];
    return success();
  }

private:
  ScaleColumnsBlock(std::unique_ptr<Block> block, std::vector<float> scales)
      : StepBlock(std::move(block), DType::F32), scales(std::move(scales)) {}

  std::vector<float> scales; ///< read once: a vector is small
};

/// What codes in groups stand for; see `#moe.quantize`. Packing takes the codes themselves, this is for everything
/// else.
class QuantizeBlock final : public StepBlock {
public:
  static Result<std::unique_ptr<Block>> open(steps::QuantizeAttr step, const std::string &name,
                                             std::vector<int64_t> members, AppendedMatrices appended,
                                             std::unique_ptr<Block> input, const MomentSource *moments) {
    MOEC_TRY(auto quantizer, Quantizer::open(step, name, std::move(members), std::move(appended), *input, moments));
    return std::unique_ptr<Block>(new QuantizeBlock(std::move(input), std::move(quantizer)));
  }
  Status read(const Rect &rect, float *out) const override {
    RowCodes codes;
    std::vector<float> line(cols);
    for (int64_t r = 0; r < rect.rows; ++r) {
      MOEC_CHECK(quantizer->quantize(rect.batch, rect.row + r, 1, &codes));
      rowValues(quantizer->format(), codes, line);
      std::copy_n(&line[rect.col], rect.cols, out + r * rect.cols);
    }
    return success();
  }

private:
  QuantizeBlock(std::unique_ptr<Block> block, std::unique_ptr<Quantizer> quantizer)
      : StepBlock(std::move(block), DType::F32), quantizer(std::move(quantizer)) {}

  std::unique_ptr<Quantizer> quantizer;
};

/// Zeros behind the last column.
class PadBlock final : public StepBlock {
public:
  PadBlock(std::unique_ptr<Block> block, int64_t size) : StepBlock(std::move(block)) { cols = size; }
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
};

/// One tensor on its way through the steps: a block, or the members of a `{e}` family.
struct Item {
  std::string name;
  std::vector<std::unique_ptr<Block>> members;
  bool family = false;
  AppendedMatrices appended = {};
  std::vector<BlockPart> parts = {}; ///< if it was joined of several in the end
};

/// Runs the steps over the list of tensors.
class RecipeBuilder {
public:
  RecipeBuilder(const TensorSource &from, const MomentSource *moments) : from(from), moments(moments) {}

  /// The tensors that the first step finds: a weight for every so many sources, as `stored` says, or each source.
  Status open(const std::vector<std::string> &sources, steps::StackAttr stack, steps::DequantAttr stored) {
    families = stack;
    if (auto groups = stored ? stored.getInt4Groups() : nullptr)
      group = groups.getGroup();
    size_t perTensor = stored ? stored.getNumSources() : 1;
    if (sources.size() % perTensor != 0)
      return Error{"a weight takes " + std::to_string(perTensor) + " tensors of the checkpoint, but the recipe has " +
                   std::to_string(sources.size())};
    for (size_t first = 0; first < sources.size(); first += perTensor) {
      std::vector<std::string> patterns(sources.begin() + first, sources.begin() + first + perTensor);
      Item item{patterns.front(), {}, steps::isFamily(patterns.front())};
      if (item.family && !stack)
        return Error{"weight source '" + item.name + "' is a family, but its recipe has no stack step"};
      for (const std::string &pattern : patterns)
        if (steps::isFamily(pattern) != item.family)
          return Error{"'" + item.name + "' and '" + pattern + "' are not both families"};
      for (int64_t i = 0; i < (item.family ? stack.getCount() : 1); ++i) {
        std::vector<std::string> names;
        for (const std::string &pattern : patterns)
          names.push_back(item.family ? steps::memberOf(pattern, stack.memberAt(i)) : pattern);
        MOEC_TRY(auto block, stored ? StoredBlock::open(stored, names, from) : SourceBlock::open(names.front(), from));
        item.members.push_back(std::move(block));
      }
      items.push_back(std::move(item));
    }
    return success();
  }

  Status apply(mlir::Attribute step) {
    for (Item &item : items)
      item.parts.clear();
    return llvm::TypeSwitch<mlir::Attribute, Status>(step)
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
        .Case([&](steps::ConcatAttr attr) { return concat(attr.getRows()); })
        .Case([&](steps::AppendAttr attr) { return append(attr); })
        .Case([&](steps::SumAttr) { return sum(); })
        .Case([&](steps::ColumnsAttr attr) {
          return each([&](const std::string &name, std::unique_ptr<Block> &block) -> Status {
            if (attr.getEnd() > block->cols)
              return Error{"tensor '" + name + "' is " + shapeText(*block) + ", which has no columns [" +
                           std::to_string(attr.getBegin()) + ", " + std::to_string(attr.getEnd()) + ")"};
            block = std::make_unique<ColumnsBlock>(std::move(block), attr.getBegin(), attr.getEnd());
            return success();
          });
        })
        .Case([&](steps::ReshapeAttr attr) {
          return each([&](const std::string &name, std::unique_ptr<Block> &block) -> Status {
            if (shapeText(*block) != shapeToString(attr.getFrom().vec()))
              return Error{"tensor '" + name + "' is " + shapeText(*block) + ", but should be reshaped as " +
                           shapeToString(attr.getFrom().vec())};
            block = std::make_unique<ReshapeBlock>(std::move(block), attr.getTo());
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
        .Case([&](steps::ScaleColumnsAttr attr) {
          return each([&](const std::string &name, std::unique_ptr<Block> &block) -> Status {
            MOEC_TRY(block, ScaleColumnsBlock::open(name, std::move(block), attr.getBy().str(), from));
            return success();
          });
        })
        .Case([&](steps::QuantizeAttr attr) -> Status {
          for (Item &item : items)
            for (auto [place, block] : llvm::enumerate(item.members)) {
              // The matrices of a family are its members: one of them, or all once they are stacked.
              std::vector<int64_t> members;
              int64_t ofFamily = std::min(block->batch, item.appended.from);
              for (int64_t i = 0; steps::isFamily(item.name) && i < ofFamily; ++i)
                members.push_back(families.memberAt(static_cast<int64_t>(place) + i));
              MOEC_TRY(block, QuantizeBlock::open(attr, item.name, members, item.appended, std::move(block), moments));
            }
          return success();
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

  /// What is left, and the parts of each.
  Status take(RecipeBlocks &result) {
    for (Item &item : items) {
      if (item.family)
        return Error{"weight source '" + item.name + "' is a family that no step stacks"};
      result.blocks.push_back(std::move(item.members.front()));
      if (item.parts.empty())
        item.parts.push_back({result.blocks.back().get(), item.name, 0, item.appended});
      result.parts.push_back(std::move(item.parts));
    }
    return success();
  }

private:
  template <typename Fn> Status each(Fn fn) {
    for (Item &item : items)
      for (auto &block : item.members)
        MOEC_CHECK(fn(item.name, block));
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

  Status append(steps::AppendAttr step) {
    if (items.size() % 2 != 0)
      return Error{"a recipe appends tensors by twos, but has " + std::to_string(items.size())};
    std::vector<Item> pairs;
    for (size_t i = 0; i < items.size(); i += 2) {
      Item &first = items[i], &second = items[i + 1];
      for (const Item *item : {&first, &second})
        if (item->family)
          return Error{"weight source '" + item->name + "' is a family that no step stacks"};
      std::unique_ptr<Block> &stack = first.members.front(), &matrix = second.members.front();
      const int64_t rows = stack->rows * (step.isByRows() ? step.getCount() : 1);
      const int64_t cols = stack->cols * (step.isByRows() ? 1 : step.getCount());
      if (stack->rank != 3 || matrix->rank != 2 || matrix->rows != rows || matrix->cols != cols ||
          matrix->dtype != stack->dtype)
        return Error{"tensor '" + second.name + "' is " + shapeText(*matrix) + " " +
                     std::string(toString(matrix->dtype)) + ", but should be appended to '" + first.name + "' as " +
                     shapeToString({rows, cols}) + " " + std::string(toString(stack->dtype))};
      if (group && !step.isByRows() && stack->cols % group != 0)
        return Error{"tensor '" + second.name + "' is cut after " + std::to_string(stack->cols) +
                     " columns, within a group of " + std::to_string(group)};
      Item &joined = pairs.emplace_back(Item{first.name, {}});
      joined.appended = {stack->batch, second.name};
      joined.members.push_back(
          std::make_unique<AppendBlock>(std::move(stack), std::move(matrix), step.isByRows(), step.getCount()));
    }
    items = std::move(pairs);
    return success();
  }

  Status sum() {
    if (items.size() % 2 != 0)
      return Error{"a recipe adds tensors by twos, but has " + std::to_string(items.size())};
    std::vector<Item> sums;
    for (size_t i = 0; i < items.size(); i += 2) {
      Item &first = items[i], &second = items[i + 1];
      for (const Item *item : {&first, &second})
        if (item->family)
          return Error{"weight source '" + item->name + "' is a family that no step stacks"};
      std::unique_ptr<Block> &lhs = first.members.front(), &rhs = second.members.front();
      if (shapeText(*rhs) != shapeText(*lhs))
        return Error{"tensor '" + second.name + "' is " + shapeText(*rhs) + ", but should be added to '" + first.name +
                     "', which is " + shapeText(*lhs)};
      Item &added = sums.emplace_back(Item{first.name, {}});
      added.members.push_back(std::make_unique<SumBlock>(std::move(lhs), std::move(rhs)));
    }
    items = std::move(sums);
    return success();
  }

  Status concat(llvm::ArrayRef<int64_t> rows) {
    if (items.size() != rows.size())
      return Error{"a recipe joins " + std::to_string(rows.size()) + " tensors, but has " +
                   std::to_string(items.size())};
    Item joined{items.front().name, {}};
    std::vector<std::unique_ptr<Block>> blocks;
    int64_t row = 0;
    for (auto [item, count] : llvm::zip_equal(items, rows)) {
      if (item.family)
        return Error{"weight source '" + item.name + "' is a family that no step stacks"};
      std::unique_ptr<Block> &block = item.members.front();
      const Block &first = blocks.empty() ? *block : *blocks.front();
      if (block->rank != 2 || block->rows != count || block->cols != first.cols || block->dtype != first.dtype)
        return Error{"tensor '" + item.name + "' is " + shapeText(*block) + " " + std::string(toString(block->dtype)) +
                     ", but should be joined as " + shapeToString({count, first.cols}) + " " +
                     std::string(toString(first.dtype))};
      joined.parts.push_back({block.get(), item.name, row});
      row += count;
      blocks.push_back(std::move(block));
    }
    joined.members.push_back(std::make_unique<ConcatBlock>(std::move(blocks), group));
    items.clear();
    items.push_back(std::move(joined));
    return success();
  }

  const TensorSource &from;
  const MomentSource *moments;
  steps::StackAttr families; ///< says which their members are
  int64_t group = 0;         ///< of the codes that the tensors hold
  std::vector<Item> items;
};

} // namespace

Result<RecipeBlocks> moec::buildRecipe(const std::vector<std::string> &sources, mlir::ArrayAttr recipe,
                                       const TensorSource &from, const MomentSource *moments) {
  RecipeBlocks result;
  llvm::ArrayRef<mlir::Attribute> logical = recipe.getValue();
  if (!logical.empty() &&
      mlir::isa<steps::PackPanelsAttr, steps::PackBlockScalesAttr, steps::PackGroupsAttr>(logical.back())) {
    result.pack = logical.back();
    logical = logical.drop_back();
  }
  // Stacking, cutting by heads and joining, all that may come between, leave groups as they are: packing can quantize
  // instead, each part that is joined later by itself.
  bool quantizesWhole = false;
  llvm::SmallVector<mlir::Attribute> values(logical);
  if (mlir::isa_and_nonnull<steps::PackGroupsAttr>(result.pack)) {
    auto *quantize = llvm::find_if(values, llvm::IsaPred<steps::QuantizeAttr>);
    if (quantize != values.end()) {
      result.quantize = mlir::cast<steps::QuantizeAttr>(*quantize);
      quantizesWhole = std::any_of(values.begin(), quantize, llvm::IsaPred<steps::ConcatAttr>);
      values.erase(quantize);
      logical = values;
    } else if (auto stored = mlir::dyn_cast_or_null<steps::DequantAttr>(values.empty() ? nullptr : values.front())) {
      result.quantize = stored.getInt4Groups();
      result.hasCodes = true;
    }
    if (!result.quantize)
      return Error{"a recipe packs codes that none of its steps makes"};
  }
  auto stored = logical.empty() ? nullptr : mlir::dyn_cast<steps::DequantAttr>(logical.front());
  if (stored)
    logical = logical.drop_front();
  steps::StackAttr stack = steps::stackOf(recipe);
  if (stack && stack.getMembers())
    result.members.assign(stack.getMembers().asArrayRef().begin(), stack.getMembers().asArrayRef().end());
  RecipeBuilder builder(from, moments);
  MOEC_CHECK(builder.open(sources, stack, stored));
  for (mlir::Attribute step : logical)
    MOEC_CHECK(builder.apply(step));
  MOEC_CHECK(builder.take(result));
  if (quantizesWhole)
    for (auto [block, parts] : llvm::zip_equal(result.blocks, result.parts))
      parts = {{block.get(), parts.front().name, 0}};
  return result;
}
