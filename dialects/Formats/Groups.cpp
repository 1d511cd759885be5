// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Groups.h"

#include "dialects/Formats/Runs.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>

using namespace moec;

namespace {

constexpr std::array<float, 8> e2m1 = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

/// To the scale's type; powers of two are rounded up, so that nothing is cut off.
float roundScale(DType type, float scale) {
  switch (type) {
  case DType::F8E8M0:
    return scale > 0 ? std::exp2(std::clamp(std::ceil(std::log2(scale)), -127.0f, 127.0f)) : 1.0f;
  case DType::F8E4M3:
    return std::isfinite(scale) ? f8e4m3ToFloat(floatToF8e4m3(scale)) : scale;
  default:
    return roundOnce(type, scale);
  }
}

/// The inverse that codes are made with; 0 where there is none.
float inverseOf(float scale) {
  float inverse = 1 / scale;
  return std::isfinite(inverse) ? inverse : 0;
}

/// Least and greatest of the values, 0 included.
std::array<float, 2> rangeOf(std::span<const float> values) {
  float low = 0, high = 0;
  for (float value : values) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  return {low, high};
}

float extremeOf(std::span<const float> values) {
  float extreme = values[0];
  for (float value : values)
    extreme = moreExtreme(extreme, value);
  return extreme;
}

uint8_t zeroPoint(float low, float scale) {
  return static_cast<uint8_t>(std::clamp(std::nearbyint(-low * inverseOf(scale)), 0.0f, 15.0f));
}

uint8_t codeOf(const GroupFormat &format, float value, float inverse, uint8_t zero) {
  // In double, so that the product is rounded once.
  double exact = static_cast<double>(value) * inverse;
  switch (format.codes) {
  case CodeKind::Int4:
    return static_cast<uint8_t>(std::clamp(std::nearbyint(exact), -8.0, 7.0) + 8);
  case CodeKind::Int4Zero:
    return static_cast<uint8_t>(std::clamp(std::nearbyint(exact) + zero, 0.0, 15.0));
  case CodeKind::Int8:
    return static_cast<uint8_t>(static_cast<int8_t>(std::clamp(std::nearbyint(exact), -127.0, 127.0)));
  default:
    return nearestCode(format.codes, static_cast<float>(exact));
  }
}

float weightedError(const GroupFormat &format, std::span<const float> values, ChosenScale chosen, float global,
                    std::span<const float> importance) {
  float scale = chosen.scale * global, inverse = inverseOf(scale), sum = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    float value = codeValue(format.codes, codeOf(format, values[i], inverse, chosen.zero));
    float error = values[i] - (format.hasZeros() ? value - chosen.zero : value) * scale;
    sum += importance[i] * error * error;
  }
  return sum;
}

/// Writes a value in the scale's type; how many bytes it took.
int64_t storeScale(DType type, float value, std::byte *to) {
  switch (type) {
  case DType::F32:
    std::memcpy(to, &value, sizeof(value));
    return 4;
  case DType::F16:
  case DType::BF16: {
    uint16_t bits = type == DType::F16 ? floatToF16(value) : floatToBf16(value);
    std::memcpy(to, &bits, sizeof(bits));
    return 2;
  }
  case DType::F8E4M3:
    *to = static_cast<std::byte>(floatToF8e4m3(value));
    return 1;
  default:
    assert(type == DType::F8E8M0 && "no format has such scales");
    *to = static_cast<std::byte>(std::ilogb(value) + 127);
    return 1;
  }
}

} // namespace

float GroupFormat::most() const {
  switch (codes) {
  case CodeKind::Int4:
    return 8;
  case CodeKind::Int4Zero:
    return 15;
  case CodeKind::Int8:
    return 127;
  case CodeKind::F8E4M3:
    return 448;
  case CodeKind::F4E2M1:
    return 6;
  }
  return 0;
}

float moec::codeValue(CodeKind kind, uint8_t code) {
  switch (kind) {
  case CodeKind::Int4:
    return static_cast<float>(code) - 8;
  case CodeKind::Int4Zero:
    return code;
  case CodeKind::Int8:
    return static_cast<int8_t>(code);
  case CodeKind::F8E4M3:
    return f8e4m3ToFloat(code);
  case CodeKind::F4E2M1:
    return code & 8 ? -e2m1[code & 7] : e2m1[code & 7];
  }
  return 0;
}

uint8_t moec::nearestCode(CodeKind kind, float value) {
  switch (kind) {
  case CodeKind::Int4:
    return static_cast<uint8_t>(std::clamp(std::nearbyint(value), -8.0f, 7.0f) + 8);
  case CodeKind::Int4Zero:
    return static_cast<uint8_t>(std::clamp(std::nearbyint(value), 0.0f, 15.0f));
  case CodeKind::Int8:
    return static_cast<uint8_t>(static_cast<int8_t>(std::clamp(std::nearbyint(value), -127.0f, 127.0f)));
  case CodeKind::F8E4M3:
    return floatToF8e4m3(value);
  case CodeKind::F4E2M1: {
    float magnitude = std::abs(value);
    // Each code begins where the one before ends, in the middle between them; that of two belongs to the even one.
    static constexpr std::array<float, 7> ends = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5};
    uint8_t code = 0;
    while (code < ends.size() && (magnitude > ends[code] || (magnitude == ends[code] && code % 2 == 1)))
      ++code;
    return code | (std::signbit(value) ? 8 : 0);
  }
  }
  return 0;
}

void moec::rowValues(const GroupFormat &format, const RowCodes &row, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    int64_t g = static_cast<int64_t>(i) / format.group;
    float value = codeValue(format.codes, row.codes[i]);
    out[i] = (format.hasZeros() ? value - row.zeros[g] : value) * row.scale(g);
  }
}

float moec::globalScale(const GroupFormat &format, float most) {
  float global = std::abs(most) / (format.most() * 448);
  return format.hasGlobal() && global > 0 ? global : 1;
}

float moec::groupScale(const GroupFormat &format, float extreme, float global) {
  if (format.codes == CodeKind::F4E2M1 && format.scale == DType::F8E8M0)
    return extreme == 0 ? 1.0f : std::exp2(std::max(std::floor(std::log2(std::abs(extreme))) - 2, -127.0f));
  if (format.codes == CodeKind::Int4 && format.scale == DType::F8E8M0)
    return roundScale(format.scale, std::abs(extreme) / 7.5f);
  // Adding 0 makes +0 of -0.
  float exact = format.codes == CodeKind::Int4 ? extreme / -8 + 0.0f : std::abs(extreme) / format.most();
  return roundScale(format.scale, exact / global);
}

ChosenScale moec::chooseScale(const GroupFormat &format, std::span<const float> values, float global,
                              std::span<const float> importance) {
  auto nominal = [&](float factor) {
    ChosenScale chosen;
    if (format.hasZeros()) {
      auto [low, high] = rangeOf(values);
      chosen.scale = roundScale(format.scale, (high - low) / 15 * factor);
      chosen.zero = zeroPoint(low, chosen.scale);
    } else {
      chosen.scale = groupScale(format, extremeOf(values) * factor, global);
    }
    return chosen;
  };
  ChosenScale best = nominal(1);
  if (importance.empty())
    return best;
  // A smaller scale cuts off what is extreme and serves the rest better; a larger one may hit more values.
  constexpr int below = 20, above = 30;
  float least = weightedError(format, values, best, global, importance);
  for (int step = -below; step <= above; ++step) {
    ChosenScale chosen = nominal(1.0f + 0.0125f * static_cast<float>(step));
    if (step == 0 || !std::isfinite(chosen.scale))
      continue;
    float error = weightedError(format, values, chosen, global, importance);
    if (error < least) {
      least = error;
      best = chosen;
    }
  }
  return best;
}

Status moec::quantizeRow(const GroupFormat &format, const std::string &name, std::span<const float> values,
                         const SharedScales &shared, std::span<const float> importance, RowCodes &out) {
  int64_t cols = static_cast<int64_t>(values.size()), groups = format.groups(cols);
  out.codes.resize(cols);
  out.scales.resize(groups);
  out.zeros.resize(format.hasZeros() ? groups : 0);
  out.global = shared.global;
  for (float value : values)
    if (!std::isfinite(value))
      return Error{"tensor " + quote(name) + " holds " + numberText(value) + ", but weights must be numbers"};
  for (int64_t g = 0; g < groups; ++g) {
    int64_t begin = g * format.group, count = std::min(format.group, cols - begin);
    std::span<const float> x = values.subspan(begin, count);
    ChosenScale chosen;
    if (shared.blocks.empty())
      chosen =
          chooseScale(format, x, shared.global, importance.empty() ? importance : importance.subspan(begin, count));
    else
      chosen.scale = shared.blocks[g];
    if (!std::isfinite(chosen.scale))
      return Error{"tensor " + quote(name) + " holds " + numberText(extremeOf(x)) +
                   ", which is too large for scales in " + std::string(toString(format.scale))};
    out.scales[g] = chosen.scale;
    if (format.hasZeros())
      out.zeros[g] = chosen.zero;
    float inverse = inverseOf(out.scale(g));
    for (int64_t i = 0; i < count; ++i)
      out.codes[begin + i] = codeOf(format, x[i], inverse, chosen.zero);
  }
  return success();
}

void moec::placeRow(const GroupFormat &format, const RowCodes &row, int64_t width, int64_t lane, std::byte *panel) {
  if (format.hasGlobal())
    std::memcpy(panel + 4 * lane, &row.global, sizeof(float));
  panel += format.headerBytes(width);
  const auto cols = static_cast<int64_t>(row.codes.size());
  const int64_t scaleSize = byteSize(format.scale), perUnit = format.unit() / format.group;
  auto codeAt = [&](int64_t col, int64_t end) -> uint8_t {
    return col < end ? row.codes[col] : nearestCode(format.codes, 0);
  };
  for (int64_t begin = 0; begin < cols; begin += format.unit()) {
    const int64_t end = std::min(cols, begin + format.unit());
    for (int64_t i = 0; i < perUnit; ++i) {
      int64_t g = begin / format.group + i;
      storeScale(format.scale, row.scales[g], panel + (i * width + lane) * scaleSize);
      if (format.hasZeros())
        panel[perUnit * width * scaleSize + i * width + lane] = static_cast<std::byte>(row.zeros[g]);
    }
    std::byte *words = panel + format.scaleBytes(width) + lane * GroupFormat::wordColumns;
    if (format.bits() == 8) {
      for (int64_t col = begin; col < end; col += GroupFormat::wordColumns, words += width * GroupFormat::wordColumns)
        for (int64_t j = 0; j < GroupFormat::wordColumns; ++j)
          words[j] = static_cast<std::byte>(codeAt(col + j, end));
    } else {
      constexpr int64_t half = GroupFormat::blockColumns / 2;
      for (int64_t block = begin; block < end; block += GroupFormat::blockColumns)
        for (int64_t q = 0; q < half; q += GroupFormat::wordColumns, words += width * GroupFormat::wordColumns)
          for (int64_t j = 0; j < GroupFormat::wordColumns; ++j)
            words[j] = static_cast<std::byte>(codeAt(block + q + j, end) | codeAt(block + half + q + j, end) << 4);
    }
    panel += format.unitBytes(width, end - begin);
  }
}
