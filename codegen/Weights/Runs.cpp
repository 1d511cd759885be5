// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Weights/Runs.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Highway compiles what follows once for each of its targets and picks one when it is called. Those of x86 without
// fused multiply-add are left out: machines that lack it take the scalar form.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codegen/Weights/Runs.cpp"
#include <hwy/foreach_target.h> // must come before highway.h

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moec::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Vectors of at most 16 lanes: a cache line, and half a group.
using Floats = hn::CappedTag<float, 16>;
using Words = hn::RebindToUnsigned<Floats>;

/// Calls `load(i)` for each whole vector of `count` elements, and `scalar(i)` for each of the rest.
template <class Vector, class Scalar> HWY_INLINE void overRun(int64_t count, Vector vector, Scalar scalar) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Floats()));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    vector(i);
  for (; i < count; ++i)
    scalar(i);
}

/// Whoever reads rows side by side goes on a run further along each: ask for it while this one is worked on.
template <class T> HWY_INLINE void readAhead(const T *data, int64_t i, int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  if (i % line == 0)
    __builtin_prefetch(data + i + count);
}

HWY_NOINLINE void widenBf16(const uint16_t *data, float *out, int64_t count) {
  const Words words;
  const hn::Rebind<uint16_t, Words> halves;
  overRun(
      count,
      [&](int64_t i) HWY_ATTR {
        readAhead(data, i, count);
        auto bits = hn::ShiftLeft<16>(hn::PromoteTo(words, hn::LoadU(halves, data + i)));
        hn::StoreU(hn::BitCast(Floats(), bits), Floats(), out + i);
      },
      [&](int64_t i) { out[i] = bf16ToFloat(data[i]); });
}

HWY_NOINLINE void widenF8(const uint8_t *data, float *out, int64_t count) {
  const hn::RebindToSigned<Words> ints;
  const hn::Rebind<int8_t, Words> bytes;
  // Sign, exponent and mantissa go to where f32 has them, which is 2^-120 times the value, subnormals included. The
  // code of all ones would read as 480: it becomes a NaN.
  const auto places = hn::Set(ints, static_cast<int32_t>(0x87F00000)), ones = hn::Set(ints, 0x07F00000);
  const auto nan = hn::Set(ints, 0x7FC00000);
  const auto power = hn::Set(Floats(), 0x1p120f);
  overRun(
      count,
      [&](int64_t i) HWY_ATTR {
        readAhead(data, i, count);
        auto code = hn::PromoteTo(ints, hn::LoadU(bytes, reinterpret_cast<const int8_t *>(data) + i));
        auto bits = hn::And(hn::ShiftLeft<20>(code), places);
        auto isNan = hn::Eq(hn::And(bits, ones), ones);
        bits = hn::IfThenElse(isNan, hn::Or(bits, nan), bits);
        hn::StoreU(hn::Mul(hn::BitCast(Floats(), bits), power), Floats(), out + i);
      },
      [&](int64_t i) { out[i] = f8e4m3ToFloat(data[i]); });
}

HWY_NOINLINE void multiplyBy(float *values, int64_t count, float factor) {
  const auto factors = hn::Set(Floats(), factor);
  overRun(
      count,
      [&](int64_t i) HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(Floats(), values + i), factors), Floats(), values + i); },
      [&](int64_t i) { values[i] *= factor; });
}

HWY_NOINLINE int64_t firstNan(const float *values, int64_t count) {
  bool found = false;
  overRun(
      count,
      [&](int64_t i) HWY_ATTR {
        auto run = hn::LoadU(Floats(), values + i);
        found |= !hn::AllTrue(Floats(), hn::Eq(run, run));
      },
      [&](int64_t i) { found |= std::isnan(values[i]); });
  return found ? std::find_if(values, values + count, [](float value) { return std::isnan(value); }) - values : count;
}

#if HWY_TARGET == HWY_SCALAR

HWY_NOINLINE bool packInt4Rows(const Int4Panel &panel, const float *values, int64_t stride, int64_t cols, int64_t lane,
                               std::byte *out) {
  for (int64_t c = 0; c < cols; c += panel.group, out += panel.groupBytes())
    for (int64_t r = 0; r < kInt4Rows; ++r) {
      const float *x = values + r * stride + c;
      float extreme = x[0];
      for (int64_t i = 0; i < panel.group; ++i) {
        if (!std::isfinite(x[i]))
          return false;
        if (std::abs(x[i]) > std::abs(extreme) || (x[i] == -extreme && std::signbit(x[i])))
          extreme = x[i];
      }
      float scale = extreme * -0.125f + 0.0f;
      uint16_t bits = panel.scale == DType::F16 ? floatToF16(scale) : floatToBf16(scale);
      scale = panel.scale == DType::F16 ? f16ToFloat(bits) : bf16ToFloat(bits);
      if (!std::isfinite(scale))
        return false;
      std::memcpy(out + 2 * (lane + r), &bits, sizeof(bits));
      double inverse = scale == 0 ? 0.0f : 1.0f / scale;
      auto code = [&](int64_t i) {
        return static_cast<int>(std::clamp(std::nearbyint(x[i] * inverse), -8.0, 7.0)) + 8;
      };
      for (int64_t t = 0; t < panel.group; t += 32)
        for (int64_t i = 0; i < 16; ++i) {
          int64_t place = 2 * panel.width + ((t / 8 + i / 4) * panel.width + lane + r) * 4 + i % 4;
          out[place] = static_cast<std::byte>(code(t + i) | code(t + 16 + i) << 4);
        }
    }
  return true;
}

#else

using Bytes = hn::Repartition<uint8_t, Words>;
/// One value for each row that is quantized at a time.
using RowFloats = hn::FixedTag<float, kInt4Rows>;
using RowWords = hn::FixedTag<uint32_t, kInt4Rows>;

/// Stores the scales rounded to their type at `out` and gives the rounded values.
template <class Row> HWY_INLINE Row roundScales(DType type, Row scales, std::byte *out) {
  alignas(16) float values[kInt4Rows];
  uint16_t bits[kInt4Rows];
  if (type == DType::F16) {
    const hn::Rebind<hwy::float16_t, RowFloats> halves;
    auto rounded = hn::DemoteTo(halves, scales);
    hn::StoreU(rounded, halves, reinterpret_cast<hwy::float16_t *>(bits));
    std::memcpy(out, bits, sizeof(bits));
    return hn::PromoteTo(RowFloats(), rounded);
  }
  hn::Store(scales, RowFloats(), values);
  for (int64_t r = 0; r < kInt4Rows; ++r) {
    bits[r] = floatToBf16(values[r]);
    values[r] = bf16ToFloat(bits[r]);
  }
  std::memcpy(out, bits, sizeof(bits));
  return hn::Load(RowFloats(), values);
}

/// Magnitude above sign: the largest of these belongs to the value of largest magnitude, the negative one of two.
HWY_INLINE auto magnitudeKey(const float *data) {
  return hn::RotateRight<31>(hn::BitCast(Words(), hn::LoadU(Floats(), data)));
}

/// The largest lane of each of four vectors.
template <class V> HWY_INLINE hn::Vec<RowWords> maxOfEach(V a, V b, V c, V d) {
  const Words words;
  auto ac = hn::Max(hn::InterleaveLower(words, a, c), hn::InterleaveUpper(words, a, c));
  auto bd = hn::Max(hn::InterleaveLower(words, b, d), hn::InterleaveUpper(words, b, d));
  // In each block of four lanes now a, b, c, d.
  auto blocks = hn::Max(hn::InterleaveLower(words, ac, bd), hn::InterleaveUpper(words, ac, bd));
  alignas(64) uint32_t lanes[16];
  hn::Store(blocks, words, lanes);
  auto best = hn::Load(RowWords(), lanes);
  for (size_t i = kInt4Rows; i < hn::Lanes(words); i += kInt4Rows)
    best = hn::Max(best, hn::Load(RowWords(), lanes + i));
  return best;
}

HWY_NOINLINE bool packInt4Rows(const Int4Panel &panel, const float *values, int64_t stride, int64_t cols, int64_t lane,
                               std::byte *out) {
  static_assert(kInt4Rows == 4);
  const Floats floats;
  const Words words;
  const Bytes bytes;
  const hn::FixedTag<uint8_t, 16> block;
  const auto lanes = static_cast<int64_t>(hn::Lanes(floats));
  const int64_t group = panel.group;

  // Adding this leaves the nearest integer, ties to even, in the last bits of the mantissa: codes plus 8.
  constexpr float base = 0x1.8p23f, bias = 8;
  const auto magic = hn::Set(floats, base + bias), least = hn::Set(floats, base), most = hn::Set(floats, base + 15);
  const auto low8 = hn::Set(words, 0xFF), low16 = hn::Set(words, 0xFFFF);
  alignas(16) static constexpr uint8_t transposed[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const auto order = hn::LoadDup128(bytes, transposed);

  const float *row0 = values, *row1 = row0 + stride, *row2 = row1 + stride, *row3 = row2 + stride;
  auto worst = hn::Zero(RowWords());
  for (int64_t c = 0; c < cols; c += group, out += panel.groupBytes()) {
    auto max0 = magnitudeKey(row0 + c), max1 = magnitudeKey(row1 + c);
    auto max2 = magnitudeKey(row2 + c), max3 = magnitudeKey(row3 + c);
    for (int64_t i = c + lanes; i < c + group; i += lanes) {
      max0 = hn::Max(max0, magnitudeKey(row0 + i));
      max1 = hn::Max(max1, magnitudeKey(row1 + i));
      max2 = hn::Max(max2, magnitudeKey(row2 + i));
      max3 = hn::Max(max3, magnitudeKey(row3 + i));
    }
    auto extreme = hn::BitCast(RowFloats(), hn::RotateRight<1>(maxOfEach(max0, max1, max2, max3)));
    // Adding 0 makes +0 of -0.
    auto exact = hn::Add(hn::Mul(extreme, hn::Set(RowFloats(), -0.125f)), hn::Zero(RowFloats()));
    auto scale = roundScales(panel.scale, exact, out + 2 * lane);
    worst = hn::Max(worst, hn::BitCast(RowWords(), hn::Abs(scale)));
    alignas(16) float inverse[kInt4Rows];
    auto isZero = hn::Eq(scale, hn::Zero(RowFloats()));
    hn::Store(hn::IfThenZeroElse(isZero, hn::Div(hn::Set(RowFloats(), 1.0f), scale)), RowFloats(), inverse);
    const auto by0 = hn::Set(floats, inverse[0]), by1 = hn::Set(floats, inverse[1]);
    const auto by2 = hn::Set(floats, inverse[2]), by3 = hn::Set(floats, inverse[3]);

    // In the last byte of each word: a column's code, above it that of 16 columns further.
    auto code = [&](const float *from, auto by) HWY_ATTR {
      auto sum = hn::MulAdd(hn::LoadU(floats, from), by, magic);
      return hn::BitCast(words, hn::Max(least, hn::Min(most, sum)));
    };
    auto pair = [&](const float *from, auto by)
                    HWY_ATTR { return hn::Add(code(from, by), hn::ShiftLeft<4>(code(from + 16, by))); };
    auto *codes = reinterpret_cast<uint8_t *>(out) + 2 * panel.width + 4 * lane;
    for (int64_t t = 0; t < group; t += 32)
      for (int64_t i = 0; i < 16; i += lanes) {
        const int64_t at = c + t + i;
        auto rows01 = hn::OrAnd(hn::ShiftLeft<8>(pair(row1 + at, by1)), pair(row0 + at, by0), low8);
        auto rows23 = hn::OrAnd(hn::ShiftLeft<8>(pair(row3 + at, by3)), pair(row2 + at, by2), low8);
        auto rows = hn::OrAnd(hn::ShiftLeft<16>(rows23), rows01, low16);
        // Each word holds one column of four rows; lanes want one row of four columns.
        alignas(64) uint8_t quads[64];
        hn::Store(hn::TableLookupBytes(hn::BitCast(bytes, rows), order), bytes, quads);
        for (int64_t q = 0; q < lanes / 4; ++q)
          hn::StoreU(hn::Load(block, quads + 16 * q), block, codes + (t / 8 + i / 4 + q) * 4 * panel.width);
      }
  }
  alignas(16) uint32_t bits[kInt4Rows];
  hn::Store(worst, RowWords(), bits);
  for (uint32_t word : bits)
    if (word >= 0x7F800000)
      return false;
  return true;
}

#endif // HWY_SCALAR

} // namespace moec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moec {

HWY_EXPORT(widenBf16);
HWY_EXPORT(widenF8);
HWY_EXPORT(multiplyBy);
HWY_EXPORT(firstNan);
HWY_EXPORT(packInt4Rows);

void widen(DType type, const std::byte *data, float *out, int64_t count) {
  switch (type) {
  case DType::F32:
    std::memcpy(out, data, count * sizeof(float));
    return;
  case DType::BF16:
    HWY_DYNAMIC_DISPATCH(widenBf16)(reinterpret_cast<const uint16_t *>(data), out, count);
    return;
  case DType::F8E4M3:
    HWY_DYNAMIC_DISPATCH(widenF8)(reinterpret_cast<const uint8_t *>(data), out, count);
    return;
  default:
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, data + 2 * i, 2);
      out[i] = f16ToFloat(bits);
    }
  }
}

void multiply(float *values, int64_t count, float factor) { HWY_DYNAMIC_DISPATCH(multiplyBy)(values, count, factor); }

int64_t findNan(const float *values, int64_t count) { return HWY_DYNAMIC_DISPATCH(firstNan)(values, count); }

bool packInt4(const Int4Panel &panel, const float *values, int64_t stride, int64_t cols, int64_t lane, std::byte *out) {
  return HWY_DYNAMIC_DISPATCH(packInt4Rows)(panel, values, stride, cols, lane, out);
}

float int4Value(const Int4Panel &panel, const std::byte *packed, int64_t lane, int64_t col) {
  packed += col / panel.group * panel.groupBytes();
  col %= panel.group;
  uint16_t bits;
  std::memcpy(&bits, packed + 2 * lane, sizeof(bits));
  float scale = panel.scale == DType::F16 ? f16ToFloat(bits) : bf16ToFloat(bits);
  int64_t word = col / 32 * 4 + col % 16 / 4;
  auto byte = static_cast<int>(packed[2 * panel.width + (word * panel.width + lane) * 4 + col % 4]);
  return static_cast<float>((col % 32 < 16 ? byte & 15 : byte >> 4) - 8) * scale;
}

Error scaleError(const std::string &tensor, DType scale, const float *values, int64_t count) {
  float worst = 0;
  for (int64_t i = 0; i < count && std::isfinite(worst); ++i)
    worst = std::isfinite(values[i]) && std::abs(values[i]) <= std::abs(worst) ? worst : values[i];
  std::string found = "tensor '" + tensor + "' holds " + std::to_string(worst);
  if (!std::isfinite(worst))
    return Error{found + ", but weights must be numbers"};
  return Error{found + ", which is too large for int4 codes with scales in " + std::string(toString(scale))};
}

} // namespace moec
#endif // HWY_ONCE
