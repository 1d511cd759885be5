// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/Reference/Dequant.h"

#include "dialects/Formats/Gguf.h"
#include "dialects/Formats/Runs.h"
#include "dialects/Formats/StoredMatrix.h"
#include "dialects/Moe/Recipe.h"
#include "runtime/Support/Text.h"

#include <cmath>
#include <cstring>

using moec::DType;
using moec::Error;
using moec::Result;
using moec::TensorView;

namespace mlir::moe::reference {

template <typename Bits> static Bits bitsAt(const std::byte *data, size_t i) {
  Bits bits;
  std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
  return bits;
}

float load(DType dtype, const std::byte *data, size_t i) {
  switch (dtype) {
  case DType::F16:
    return moec::f16ToFloat(bitsAt<uint16_t>(data, i));
  case DType::BF16:
    return moec::bf16ToFloat(bitsAt<uint16_t>(data, i));
  case DType::F8E4M3:
    return moec::f8e4m3ToFloat(bitsAt<uint8_t>(data, i));
  case DType::F8E8M0:
  case DType::U8:
    return moec::f8e8m0ToFloat(bitsAt<uint8_t>(data, i));
  default:
    return bitsAt<float>(data, i);
  }
}

/// The bits of the code at row `out`, column `in` of a packed matrix.
static unsigned codeAt(const moec::Packing &packing, const TensorView &view, int64_t out, int64_t in) {
  int64_t perWord = packing.perWord();
  bool alongIn = packing.along == moec::Packing::Axis::In;
  int64_t place = (alongIn ? in : out) % perWord;
  (alongIn ? in : out) /= perWord;
  int64_t index = packing.inMajor ? in * view.shape[1] + out : out * view.shape[1] + in;
  int64_t bit = packing.place[place] * packing.bits;
  int64_t byte = index * moec::byteSize(view.dtype) + bit / 8;
  return static_cast<unsigned>(view.data[byte]) >> bit % 8 & ((1u << packing.bits) - 1);
}

static float valueOf(moec::Element element, int bits, unsigned code) {
  constexpr float e2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  switch (element) {
  case moec::Element::F8E4M3:
    return moec::f8e4m3ToFloat(static_cast<uint8_t>(code));
  case moec::Element::F4E2M1:
    return (code & 8 ? -1.0f : 1.0f) * e2m1[code & 7];
  case moec::Element::Signed:
    return code >> (bits - 1) ? float(code) - float(1 << bits) : float(code);
  case moec::Element::Unsigned:
    return float(code);
  }
  return 0;
}

/// A tensor of bytes [rows, bytes of a row], block by block.
static Result<StoredTensor> decodeBlocks(const moec::GgufType &type, const std::string &name,
                                         const moec::TensorSource &source) {
  MOEC_TRY(TensorView view, source.tensor(name));
  if (view.dtype != DType::U8 || view.shape.size() != 2 || view.shape[1] % type.bytes != 0)
    return Error{"tensor '" + name + "' is " + std::string(moec::toString(view.dtype)) + " " +
                 moec::shapeToString(view.shape) + ", expected U8 and rows of " + std::string(type.name) +
                 " blocks of " + std::to_string(type.bytes) + " bytes"};
  int64_t rows = view.shape[0], cols = view.shape[1] / type.bytes * type.elements;
  StoredTensor result{DType::F32, Tensor<float>({rows, cols})};
  for (int64_t block = 0; block < rows * cols / type.elements; ++block)
    type.decode(view.data + block * type.bytes, &result.values.data[block * type.elements]);
  for (auto [index, value] : llvm::enumerate(result.values.data))
    if (!std::isfinite(value))
      return Error{"'" + name + "' at [" + std::to_string(index / cols) + ", " + std::to_string(index % cols) +
                   "] is not finite"};
  return result;
}

Result<StoredTensor> dequantize(DequantAttr step, llvm::ArrayRef<std::string> names, const moec::TensorSource &source) {
  if (const moec::GgufType *blocks = step.getBlocks())
    return decodeBlocks(*blocks, names[0], source);
  moec::Format format = step.getDescription();
  std::vector<TensorView> views;
  for (const std::string &name : names) {
    MOEC_TRY(TensorView view, source.tensor(name));
    views.push_back(std::move(view));
  }
  const TensorView &codes = views[0], &scales = views[1];
  if (codes.shape.size() != 2)
    return Error{"tensor '" + names[0] + "' has " + std::to_string(codes.shape.size()) + " dimensions, expected 2"};
  auto [rows, cols] = moec::logicalShape(format.packing, codes.shape);
  if (rows < 1 || cols < 1)
    return Error{"tensor '" + names[0] + "' is empty"};
  for (auto [number, tensor] : llvm::enumerate(moec::requiredTensors(format, rows, cols)))
    MOEC_CHECK(tensor.check(names[number], views[number].dtype, views[number].shape));

  size_t next = 2;
  double global = format.globalScale.empty() ? 1 : load(DType::F32, views[next++].data, 0);
  const TensorView *zeros = format.zeroPoints.empty() ? nullptr : &views[next++];
  const TensorView *index = format.groupIndex.empty() ? nullptr : &views[next++];
  if (!format.storedShape.empty()) {
    const TensorView &shape = views[next++];
    auto stored = [&](size_t i) {
      return shape.dtype == DType::I64 ? bitsAt<int64_t>(shape.data, i) : bitsAt<int32_t>(shape.data, i);
    };
    if (stored(0) != rows || stored(1) != cols)
      return Error{"tensor '" + names[next - 1] + "' holds [" + std::to_string(stored(0)) + ", " +
                   std::to_string(stored(1)) + "], expected [" + std::to_string(rows) + ", " + std::to_string(cols) +
                   "]"};
  }
  if (!(global > 0) || !std::isfinite(global))
    return Error{"the global scale of '" + names[0] + "' is " + std::to_string(global) +
                 ", expected a positive number"};

  int64_t inGroups = format.scale.inGroups(cols), outGroups = format.scale.outGroups(rows);
  int middle = 1 << (format.zeroPacking.bits - 1);
  int added = format.zeroAdded;
  if (format.symmetric) // the first tells how all are stored
    added = middle - int(codeAt(format.zeroPacking, *zeros, 0, 0));
  StoredTensor result{*storedType(step.getType()), Tensor<float>({rows, cols})};
  if (QuantizeAttr groups = step.getInt4Groups())
    result.quantized.emplace(groups, std::vector<int64_t>{rows, cols});
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      auto refused = [&](const std::string &problem) {
        return Error{"'" + names[0] + "' at [" + std::to_string(i) + ", " + std::to_string(j) + "] " + problem};
      };
      int64_t inGroup = index ? bitsAt<int32_t>(index->data, j) : format.scale.cols ? j / format.scale.cols : 0;
      int64_t outGroup = format.scale.rows ? i / format.scale.rows : 0;
      if (inGroup < 0 || inGroup >= inGroups)
        return refused("is in group " + std::to_string(inGroup) + " of " + std::to_string(inGroups));
      size_t group = format.scale.inMajor ? inGroup * outGroups + outGroup : outGroup * inGroups + inGroup;
      float scale = load(scales.dtype, scales.data, group);
      if (!(scale >= 0) || !std::isfinite(scale))
        return refused("has the scale " + std::to_string(scale) + ", expected a positive number");
      int zero = format.zero;
      if (zeros)
        zero = (int(codeAt(format.zeroPacking, *zeros, outGroup, inGroup)) + added) & (2 * middle - 1);
      if (format.symmetric && zero != middle)
        return refused("has a zero point of its own, but is declared symmetric");
      float code = valueOf(format.element, format.packing.bits, codeAt(format.packing, codes, i, j));
      if (scale == 0 && code != float(zero))
        return refused("has the scale 0, but a code that is not zero");
      // Codes have 8 bits at most and scales 24: all but the quotient is exact, and that rounds on as the exact one
      // does.
      double value = (double(code) - zero) * double(scale);
      value = format.globalDivides ? value / global : value * global;
      float rounded = moec::roundOnce(result.dtype, value);
      if (!std::isfinite(rounded))
        return refused(std::isnan(code) ? "is NaN" : "is too large");
      result.values.data[i * cols + j] = rounded;
      if (result.quantized) {
        result.quantized->codes.data[i * cols + j] = code - float(zero);
        result.quantized->scales.data[i * inGroups + inGroup] = scale;
      }
    }
  return result;
}

} // namespace mlir::moe::reference
