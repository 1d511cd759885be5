// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Format.h"

#include "runtime/Support/Text.h"

#include <algorithm>
#include <cassert>

namespace moec {

namespace {

template <typename T, typename Fn> std::string join(const std::vector<T> &items, Fn text) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i)
    out += (i == 0 ? "" : i + 1 == items.size() ? " or " : ", ") + text(items[i]);
  return out;
}

const std::vector<DType> floats = {DType::F32, DType::F16, DType::BF16};
const std::vector<DType> exponents = {DType::F8E8M0, DType::U8};

std::string scaleName(formats::Naming naming) {
  switch (naming) {
  case formats::Naming::ScaleInv:
    return "weight_scale_inv";
  case formats::Naming::WeightScale:
    return "weight_scale";
  case formats::Naming::Scale:
    return "scale";
  }
  assert(false && "covered above");
  return "";
}

std::string groupText(int64_t group) {
  return group ? "in groups of " + std::to_string(group) : "with a scale for each row";
}

/// What a grid's scales belong to, within a name.
std::string gridText(int64_t rows, int64_t cols) {
  if (rows == 0 && cols == 0)
    return "with one scale";
  if (rows == 1)
    return groupText(cols);
  return "in blocks of " + std::to_string(rows) + "x" + std::to_string(cols);
}

std::vector<std::vector<int64_t>> gridShapes(const Grid &grid, int64_t out, int64_t in) {
  int64_t rows = grid.outGroups(out), cols = grid.inGroups(in);
  if (grid.inMajor)
    return {{cols, rows}};
  std::vector<std::vector<int64_t>> shapes = {{rows, cols}};
  if (grid.cols == 0) // one for each row, or one
    shapes.push_back({rows});
  if (grid.rows == 0 && grid.cols == 0)
    shapes.push_back({});
  return shapes;
}

} // namespace

std::vector<int64_t> Packing::shape(int64_t out, int64_t in) const {
  int64_t &packed = along == Axis::In ? in : out;
  packed = (packed + perWord() - 1) / perWord();
  return inMajor ? std::vector<int64_t>{in, out} : std::vector<int64_t>{out, in};
}

DType Format::valueType() const { return scale.types == exponents ? DType::BF16 : DType::F32; }

Status RequiredTensor::check(const std::string &tensor, DType type, const std::vector<int64_t> &shape) const {
  if (std::find(types.begin(), types.end(), type) == types.end())
    return Error{"tensor " + quote(tensor) + " is " + std::string(toString(type)) + ", expected " +
                 join(types, [](DType t) { return std::string(toString(t)); })};
  if (std::find(shapes.begin(), shapes.end(), shape) == shapes.end())
    return Error{"tensor " + quote(tensor) + " is " + shapeToString(shape) + ", expected " +
                 join(shapes, shapeToString)};
  return success();
}

std::vector<RequiredTensor> requiredTensors(const Format &format, int64_t out, int64_t in) {
  assert(out > 0 && in > 0 && out <= INT32_MAX && in <= INT32_MAX);
  std::vector<RequiredTensor> tensors;
  tensors.push_back({format.codes, format.packing.words, {format.packing.shape(out, in)}});
  tensors.push_back({format.scale.suffix, format.scale.types, gridShapes(format.scale, out, in)});
  if (!format.globalScale.empty())
    tensors.push_back({format.globalScale, {DType::F32}, {{1}, {}}});
  if (!format.zeroPoints.empty())
    tensors.push_back({format.zeroPoints,
                       format.zeroPacking.words,
                       {format.zeroPacking.shape(format.scale.outGroups(out), format.scale.inGroups(in))}});
  if (!format.groupIndex.empty())
    tensors.push_back({format.groupIndex, {DType::I32}, {{in}}, !format.groupIndexRequired});
  if (!format.storedShape.empty())
    tensors.push_back({format.storedShape, {DType::I64, DType::I32}, {{2}}});
  return tensors;
}

Format formats::fp8(int64_t rows, int64_t cols, Naming naming, bool e8m0) {
  Format format;
  format.name = "fp8 e4m3 " + gridText(rows, cols);
  format.element = Element::F8E4M3;
  format.codes = "weight";
  format.packing.words = {DType::F8E4M3};
  format.scale = {scaleName(naming), e8m0 ? exponents : floats, rows, cols};
  if (naming == Naming::ScaleInv && !e8m0) // what they are stored as shows in the file
    format.scale.types.insert(format.scale.types.end(), exponents.begin(), exponents.end());
  format.setAside = {"input_scale"};
  return format;
}

Format formats::gptq(int bits, int64_t group, bool symmetric, int version, bool actOrder) {
  assert((bits == 4 || bits == 8) && (version == 1 || version == 2));
  Format format;
  format.name = "gptq int" + std::to_string(bits) + " " + groupText(group);
  format.codes = "qweight";
  format.packing = {{DType::I32}, bits, Packing::Axis::In, /*inMajor=*/true};
  format.scale = {"scales", floats, 1, group, /*inMajor=*/true};
  format.zeroPoints = "qzeros";
  format.zeroPacking = {{DType::I32}, bits, Packing::Axis::Out, /*inMajor=*/true};
  format.zeroAdded = version == 1 ? 1 : 0;
  format.symmetric = symmetric;
  format.groupIndex = "g_idx";
  format.groupIndexRequired = actOrder;
  return format;
}

Format formats::awq(int64_t group) {
  Format format;
  format.name = "awq int4 " + groupText(group);
  format.codes = "qweight";
  format.packing = {{DType::I32}, 4, Packing::Axis::Out, /*inMajor=*/true, {0, 4, 1, 5, 2, 6, 3, 7}};
  format.scale = {"scales", floats, 1, group, /*inMajor=*/true};
  format.zeroPoints = "qzeros";
  format.zeroPacking = format.packing;
  return format;
}

Format formats::packQuantized(int bits, int64_t group, bool symmetric, bool actOrder) {
  assert(bits == 4 || bits == 8);
  Format format;
  format.name = "pack-quantized int" + std::to_string(bits) + " " + groupText(group);
  format.codes = "weight_packed";
  format.packing = {{DType::I32}, bits};
  format.scale = {"weight_scale", floats, 1, group};
  // Codes and stored zero points both carry this offset, so that it goes where there is a zero point.
  if (symmetric)
    format.zero = 1 << (bits - 1);
  else
    format.zeroPoints = "weight_zero_point";
  format.zeroPacking = {{DType::I32}, bits, Packing::Axis::Out};
  if (actOrder)
    format.groupIndex = "weight_g_idx";
  format.groupIndexRequired = actOrder;
  format.storedShape = "weight_shape";
  format.setAside = {"input_scale", "input_zero_point", "input_global_scale"};
  return format;
}

Format formats::intQuantized(int64_t rows, int64_t cols) {
  Format format;
  format.name = "int8 " + gridText(rows, cols);
  format.element = Element::Signed;
  format.codes = "weight";
  format.packing.words = {DType::I8};
  format.scale = {"weight_scale", floats, rows, cols};
  format.setAside = {"input_scale", "input_zero_point"};
  return format;
}

Format formats::nvfp4(bool modelOpt) {
  Format format;
  format.name = modelOpt ? "nvfp4 of modelopt" : "nvfp4 of compressed-tensors";
  format.element = Element::F4E2M1;
  format.codes = modelOpt ? "weight" : "weight_packed";
  format.packing = {{DType::U8}, 4};
  format.scale = {"weight_scale", {DType::F8E4M3}, 1, 16};
  format.globalScale = modelOpt ? "weight_scale_2" : "weight_global_scale";
  format.globalDivides = !modelOpt;
  format.setAside = {modelOpt ? "input_scale" : "input_global_scale"};
  return format;
}

Format formats::mxfp4(Naming naming) {
  Format format;
  format.name = "mxfp4";
  format.element = Element::F4E2M1;
  format.codes = naming == Naming::Scale ? "weight" : "weight_packed";
  format.packing = {{DType::U8, DType::I8}, 4};
  format.scale = {scaleName(naming), exponents, 1, 32};
  return format;
}

} // namespace moec
