// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Moe/Reference/Quantize.h"

#include "dialects/Formats/CodedEntry.h"
#include "dialects/Formats/Runs.h"
#include "dialects/Moe/Recipe.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/MathExtras.h"
#include "llvm/Support/raw_ostream.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

using moec::DType;
using moec::Error;
using moec::Result;
using moec::Status;

namespace mlir::moe::reference {

using Shape = std::vector<int64_t>;

Error stepError(Attribute step, const std::string &name, const std::string &problem) {
  std::string text;
  llvm::raw_string_ostream(text) << step << ": '" << name << "' " << problem;
  return Error{text};
}

Codes::Codes(QuantizeAttr format, const Shape &shape) : format(format), codes(shape) {
  Shape groups = shape;
  groups.back() = format.getFormat().groups(shape.back());
  scales = zeros = Tensor<float>(groups);
  groups.back() = 1;
  globals = Tensor<float>(groups);
  std::fill(globals.data.begin(), globals.data.end(), 1.0f);
}

/// The codes of e2m1, by their bits.
static constexpr float kE2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

/// What of the format's codes comes nearest to `x`, an exact value of which only int4_zero codes are moved by `zero`.
static float nearest(CodeFormat codes, double x, float zero) {
  switch (codes) {
  case CodeFormat::Int4:
    return int(std::clamp(std::nearbyint(x), -8.0, 7.0));
  case CodeFormat::Int4Zero:
    return int(std::clamp(std::nearbyint(x) + double(zero), 0.0, 15.0));
  case CodeFormat::Int8:
    return int(std::clamp(std::nearbyint(x), -127.0, 127.0));
  case CodeFormat::F8E4M3:
    return moec::f8e4m3ToFloat(moec::floatToF8e4m3(float(x)));
  case CodeFormat::F4E2M1: {
    int best = 0;
    double magnitude = std::abs(double(float(x)));
    for (int code = 1; code < 8; ++code) {
      double distance = std::abs(kE2m1[code] - magnitude), least = std::abs(kE2m1[best] - magnitude);
      if (distance < least || (distance == least && code % 2 == 0))
        best = code;
    }
    return std::copysign(kE2m1[best], float(x));
  }
  }
  llvm_unreachable("all codes are listed");
}

/// `exact` as scales are stored; powers of two are rounded up.
static float storedScale(DType type, double exact) {
  if (type == DType::F8E8M0)
    return exact > 0 ? std::exp2(std::clamp(std::ceil(std::log2(exact)), -127.0, 127.0)) : 1;
  if (type == DType::F8E4M3)
    return moec::f8e4m3ToFloat(moec::floatToF8e4m3(float(exact)));
  return moec::roundOnce(type, exact);
}

/// What a group's elements decide.
struct Extremes {
  float most = 0; ///< of largest magnitude, the negative one of two
  float low = 0, high = 0;

  void add(float x) {
    if (std::abs(x) > std::abs(most) || (x == -most && std::signbit(x)))
      most = x;
    low = std::min(low, x);
    high = std::max(high, x);
  }
};

static float scaleOf(QuantizeAttr step, const Extremes &group, float global) {
  DType type = *storedType(step.getScale());
  float amax = std::abs(group.most);
  switch (step.getCodes()) {
  case CodeFormat::Int4:
    // Adding 0 makes +0 of -0.
    return type == DType::F8E8M0 ? storedScale(type, amax / 7.5f) : storedScale(type, group.most / -8 + 0.0f);
  case CodeFormat::Int4Zero:
    return storedScale(type, (group.high - group.low) / 15);
  case CodeFormat::Int8:
    return amax / 127;
  case CodeFormat::F8E4M3:
    return amax / 448;
  case CodeFormat::F4E2M1:
    if (type == DType::F8E8M0)
      return amax == 0 ? 1 : std::exp2(std::max(std::floor(std::log2(double(amax))) - 2, -127.0));
    return storedScale(type, amax / 6 / global);
  }
  llvm_unreachable("all codes are listed");
}

/// Of group `g` of the rows from `top` on.
static Extremes extremesOf(QuantizeAttr step, const float *x, int64_t rows, int64_t cols, int64_t top, int64_t g) {
  Extremes extremes;
  int64_t begin = g * step.getGroup();
  for (int64_t r = top; r < std::min(rows, top + step.getRows()); ++r)
    for (int64_t c = begin; c < std::min(cols, begin + step.getGroup()); ++c)
      extremes.add(x[r * cols + c]);
  return extremes;
}

/// The rows of matrix `matrix`, rounded by what a calibration found for member `member` of the family `name`.
static Status roundByMoments(QuantizeAttr step, const std::string &name, int64_t member, int64_t matrix,
                             const moec::MomentSource *moments, StoredTensor &tensor) {
  if (!moments)
    return stepError(step, name, "is to be rounded by what a calibration found, but there is none");
  const Shape &shape = tensor.values.shape;
  int64_t rows = shape[shape.size() - 2], cols = shape.back(), groups = tensor.quantized->scales.shape.back();
  MOEC_CHECK(moments->check(name, cols));
  moec::GroupFormat format = step.getFormat();
  float *values = &tensor.values.data[matrix * rows * cols];
  float most = 0;
  for (int64_t i = 0; i < rows * cols; ++i)
    most = std::max(most, std::abs(values[i]));
  float global = moec::globalScale(format, most);
  std::optional<moec::Feedback> feedback;
  std::vector<float> importance;
  if (step.getRounding() == Rounding::Feedback) {
    MOEC_TRY(moec::SecondMoment moment, moments->moment(name, member));
    feedback.emplace(std::move(moment));
  } else {
    MOEC_TRY(importance, moments->importance(name, member));
  }
  // Scales of blocks are those to nearest.
  std::vector<float> blocks;
  for (int64_t top = 0; step.getRows() > 1 && top < rows; top += step.getRows())
    for (int64_t g = 0; g < groups; ++g)
      blocks.push_back(scaleOf(step, extremesOf(step, values, rows, cols, top, g), global));
  int64_t height =
      feedback ? std::gcd(step.getRows() > 1 ? step.getRows() : moec::Feedback::lanes, moec::Feedback::lanes) : 1;
  std::vector<moec::RowCodes> codes(height);
  for (int64_t row = 0; row < rows; row += height) {
    int64_t count = std::min(height, rows - row);
    float *x = values + row * cols;
    moec::SharedScales shared{global, {}};
    if (!blocks.empty())
      shared.blocks = {&blocks[row / step.getRows() * groups], size_t(groups)};
    MOEC_CHECK(feedback ? feedback->quantize(format, name, x, count, shared, codes.data())
                        : moec::quantizeRow(format, name, {x, size_t(cols)}, shared, importance, codes[0]));
    for (int64_t r = 0; r < count; ++r) {
      moec::rowValues(format, codes[r], {x + r * cols, size_t(cols)});
      int64_t at = matrix * rows + row + r;
      for (int64_t c = 0; c < cols; ++c)
        tensor.quantized->codes.data[at * cols + c] = moec::codeValue(format.codes, codes[r].codes[c]);
      for (int64_t g = 0; g < groups; ++g) {
        tensor.quantized->scales.data[at * groups + g] = codes[r].scales[g];
        tensor.quantized->zeros.data[at * groups + g] = format.hasZeros() ? codes[r].zeros[g] : 0;
      }
      tensor.quantized->globals.data[at] = global;
    }
  }
  return moec::success();
}

Result<StoredTensor> quantize(QuantizeAttr step, const std::string &name, const StoredTensor &in,
                              llvm::function_ref<int64_t(int64_t)> memberOfMatrix, const moec::MomentSource *moments) {
  const Shape &shape = in.values.shape;
  if (shape.size() < 2 || !step.divides(shape.back()))
    return stepError(step, name,
                     "has rows of " + std::to_string(shape.empty() ? 0 : shape.back()) + ", expected whole groups of " +
                         std::to_string(step.getFormat().unit()));
  for (float x : in.values.data)
    if (!std::isfinite(x))
      return stepError(step, name, "holds " + std::to_string(x) + ", expected numbers");
  StoredTensor out{DType::F32, Tensor<float>(shape), Codes(step, shape)};
  Codes &to = *out.quantized;
  int64_t rows = shape[shape.size() - 2], cols = shape.back(), group = step.getGroup(), height = step.getRows();
  int64_t groups = llvm::divideCeil(cols, group), matrices = int64_t(in.values.data.size()) / (rows * cols);
  for (int64_t matrix = 0; matrix < matrices; ++matrix) {
    if (step.getRounding() != Rounding::Nearest) {
      std::copy_n(&in.values.data[matrix * rows * cols], rows * cols, &out.values.data[matrix * rows * cols]);
      MOEC_CHECK(roundByMoments(step, name, memberOfMatrix(matrix), matrix, moments, out));
      continue;
    }
    const float *x = &in.values.data[matrix * rows * cols];
    float global = 1;
    if (isa<Float8E4M3FNType>(step.getScale())) {
      float amax = 0;
      for (int64_t i = 0; i < rows * cols; ++i)
        amax = std::max(amax, std::abs(x[i]));
      global = amax / (6 * 448) > 0 ? amax / (6 * 448) : 1;
    }
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t g = 0; g < groups; ++g) {
        int64_t begin = g * group, end = std::min(cols, begin + group);
        Extremes extremes = extremesOf(step, x, rows, cols, row / height * height, g);
        float stored = scaleOf(step, extremes, global);
        if (!std::isfinite(stored))
          return stepError(step, name,
                           "holds " + std::to_string(extremes.most) + ", too large for scales in " +
                               std::string(moec::toString(*storedType(step.getScale()))));
        float scale = stored * global, inverse = std::isfinite(1 / scale) ? 1 / scale : 0, zero = 0;
        if (step.getCodes() == CodeFormat::Int4Zero)
          zero = std::clamp(std::nearbyint(-extremes.low * inverse), 0.0f, 15.0f);
        for (int64_t c = begin; c < end; ++c) {
          size_t i = (matrix * rows + row) * cols + c;
          to.codes.data[i] = nearest(step.getCodes(), double(in.values.data[i]) * double(inverse), zero);
          out.values.data[i] = (to.codes.data[i] - zero) * scale;
        }
        size_t i = (matrix * rows + row) * groups + g;
        to.scales.data[i] = stored;
        to.zeros.data[i] = zero;
        to.globals.data[matrix * rows + row] = global;
      }
  }
  return out;
}

/// The byte that stores a code: what it stands for, told by `value`.
int byteOf(CodeFormat codes, float value) {
  switch (codes) {
  case CodeFormat::Int4:
    return int(value) + 8;
  case CodeFormat::Int4Zero:
    return int(value);
  case CodeFormat::Int8:
    return int(value) & 0xff;
  case CodeFormat::F8E4M3:
    return moec::floatToF8e4m3(value);
  case CodeFormat::F4E2M1:
    return int(llvm::find(kE2m1, std::abs(value)) - kE2m1) + (std::signbit(value) ? 8 : 0);
  }
  llvm_unreachable("all codes are listed");
}

template <typename T> Tensor<T> fakeQuantize(const Tensor<T> &x, Attribute attribute) {
  Tensor<T> y(x.shape);
  auto format = dyn_cast<QuantizeAttr>(attribute);
  if (!format) {
    llvm::transform(x.data, y.data.begin(), [](T v) { return T(moec::bf16ToFloat(moec::floatToBf16(float(v)))); });
    return y;
  }
  int64_t cols = x.lastDim(), group = format.getGroup();
  for (int64_t t = 0; t < x.dim(0); ++t)
    for (int64_t begin = 0; begin < cols; begin += group) {
      int64_t end = std::min(cols, begin + group);
      Extremes extremes;
      for (int64_t c = begin; c < end; ++c)
        extremes.add(float(x.row(t)[c]));
      float scale = scaleOf(format, extremes, /*global=*/1), inverse = std::isfinite(1 / scale) ? 1 / scale : 0;
      for (int64_t c = begin; c < end; ++c)
        y.row(t)[c] = nearest(format.getCodes(), double(x.row(t)[c]) * double(inverse), /*zero=*/0) * scale;
    }
  return y;
}
template Tensor<float> fakeQuantize(const Tensor<float> &, Attribute);
template Tensor<double> fakeQuantize(const Tensor<double> &, Attribute);

CachedGroup cachedGroup(CodeFormat codes, llvm::ArrayRef<float> x) {
  CachedGroup group{std::vector<float>(x.size()), std::numeric_limits<float>::quiet_NaN()};
  if (!llvm::all_of(x, [](float value) { return std::isfinite(value); }))
    return group;
  float most = 0;
  for (float value : x)
    most = std::max(most, std::abs(value));
  group.scale = most / (codes == CodeFormat::Int8 ? 127 : 448);
  float inverse = std::isfinite(1 / group.scale) ? 1 / group.scale : 0;
  for (auto [value, code] : llvm::zip_equal(x, group.codes))
    code = nearest(codes, double(value) * double(inverse), /*zero=*/0);
  return group;
}

template <typename T> Tensor<T> fromCodes(const Tensor<T> &latents, CacheCodesAttr format) {
  Tensor<T> y(latents.shape);
  int64_t width = latents.lastDim();
  for (int64_t t = 0; t < latents.dim(0); ++t)
    for (int64_t begin = 0; begin < width; begin += moec::CodedEntry::group) {
      const T *from = latents.row(t) + begin;
      std::vector<float> x(from, from + std::min(moec::CodedEntry::group, width - begin));
      CachedGroup group = cachedGroup(format.getCodes(), x);
      for (auto [c, code] : llvm::enumerate(group.codes))
        y.row(t)[begin + c] = moec::bf16ToFloat(moec::floatToBf16(code * group.scale));
    }
  return y;
}
template Tensor<float> fromCodes(const Tensor<float> &, CacheCodesAttr);
template Tensor<double> fromCodes(const Tensor<double> &, CacheCodesAttr);

} // namespace mlir::moe::reference
