// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Int4.h"

#include "runtime/Support/Text.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Highway compiles what follows once for each of its targets and picks one when it is called. Those of x86 without
// fused multiply-add are left out: machines that lack it take the scalar form.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dialects/Formats/Int4.cpp"
#include <hwy/foreach_target.h> // must come before highway.h

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moec::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Vectors of at most 16 lanes: a cache line, and half a group.
using Floats = hn::CappedTag<float, 16>;
using Words = hn::RebindToUnsigned<Floats>;

#if HWY_TARGET == HWY_SCALAR

HWY_NOINLINE bool packInt4Rows(const Int4Panel &panel, const float *values, int64_t stride, int64_t cols, int64_t lane,
                               std::byte *out, const ReadAhead &ahead) {
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
      double inverse = std::isfinite(1.0f / scale) ? 1.0f / scale : 0.0f;
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
using RowWords = hn::FixedTag<uint32_t, kInt4Rows>;

constexpr int64_t cacheLine = 64;

/// Columns whose scales are found before their codes, so that the latter wait for nothing.
constexpr int64_t kScaleColumns = 1024, kMaxGroups = kScaleColumns / 32;

/// Magnitude above sign: the largest of these belongs to the value of largest magnitude, the negative one of two.
HWY_INLINE auto magnitudeKey(const float *data) {
  return hn::RotateRight<31>(hn::BitCast(Words(), hn::LoadU(Floats(), data)));
}

/// The extreme of each of four rows' `group` values.
HWY_INLINE void findExtremes(const float *values, int64_t stride, int64_t group, float *out) {
  const Words words;
  const auto lanes = static_cast<int64_t>(hn::Lanes(words));
  auto largest = [&](const float *row) HWY_ATTR {
    auto most = magnitudeKey(row);
    for (int64_t i = lanes; i < group; i += lanes)
      most = hn::Max(most, magnitudeKey(row + i));
    return most;
  };
  auto a = largest(values), b = largest(values + stride), c = largest(values + 2 * stride);
  auto d = largest(values + 3 * stride);
  auto ac = hn::Max(hn::InterleaveLower(words, a, c), hn::InterleaveUpper(words, a, c));
  auto bd = hn::Max(hn::InterleaveLower(words, b, d), hn::InterleaveUpper(words, b, d));
  // In each block of four lanes now a, b, c, d.
  alignas(64) uint32_t blocks[16];
  hn::Store(hn::Max(hn::InterleaveLower(words, ac, bd), hn::InterleaveUpper(words, ac, bd)), words, blocks);
  auto best = hn::Load(RowWords(), blocks);
  for (int64_t i = kInt4Rows; i < lanes; i += kInt4Rows)
    best = hn::Max(best, hn::Load(RowWords(), blocks + i));
  hn::Store(hn::RotateRight<1>(best), RowWords(), reinterpret_cast<uint32_t *>(out));
}

/// From extremes to the bits of scales and to what codes are multiples of, the inverse of the rounded scale or 0;
/// `count` is a multiple of the lanes. False if a scale is not finite.
HWY_INLINE bool makeScales(DType type, float *values, uint16_t *bits, int64_t count) {
  const Floats floats;
  const Words words;
  const auto lanes = static_cast<int64_t>(hn::Lanes(floats));
  const auto infinity = hn::Set(floats, HUGE_VALF);
  bool finite = true;
  for (int64_t i = 0; i < count; i += lanes) {
    // Adding 0 makes +0 of -0.
    auto exact = hn::Add(hn::Mul(hn::Load(floats, values + i), hn::Set(floats, -0.125f)), hn::Zero(floats));
    auto scale = exact;
    if (type == DType::F16) {
      const hn::Rebind<hwy::float16_t, Floats> halves;
      auto rounded = hn::DemoteTo(halves, exact);
      hn::StoreU(rounded, halves, reinterpret_cast<hwy::float16_t *>(bits + i));
      scale = hn::PromoteTo(floats, rounded);
    } else {
      const hn::Rebind<uint16_t, Floats> halves;
      // To nearest even: half of the last bit that stays, less one where that is even. A NaN could become a number.
      auto word = hn::BitCast(words, exact);
      auto odd = hn::And(hn::ShiftRight<16>(word), hn::Set(words, 1));
      auto rounded = hn::ShiftRight<16>(hn::Add(word, hn::Add(odd, hn::Set(words, 0x7FFF))));
      hn::StoreU(hn::DemoteTo(halves, hn::BitCast(hn::RebindToSigned<Words>(), rounded)), halves, bits + i);
      scale = hn::IfThenElse(hn::Eq(exact, exact), hn::BitCast(floats, hn::ShiftLeft<16>(rounded)), exact);
    }
    finite &= hn::AllTrue(floats, hn::Lt(hn::Abs(scale), infinity));
    auto inverse = hn::Div(hn::Set(floats, 1.0f), scale);
    hn::Store(hn::IfThenElseZero(hn::Lt(hn::Abs(inverse), infinity), inverse), floats, values + i);
  }
  return finite;
}

HWY_NOINLINE bool packInt4Rows(const Int4Panel &panel, const float *values, int64_t stride, int64_t cols, int64_t lane,
                               std::byte *out, const ReadAhead &ahead) {
  static_assert(kInt4Rows == 4);
  const Floats floats;
  const Words words;
  const Bytes bytes;
  const hn::Repartition<int8_t, Words> codes;
  const hn::FixedTag<uint8_t, 16> block;
  const auto lanes = static_cast<int64_t>(hn::Lanes(floats));
  const int64_t group = panel.group, groupBytes = panel.groupBytes();

  // Adding this leaves the nearest integer, ties to even, in the last bits of the mantissa: codes plus 8.
  const auto magic = hn::Set(floats, 0x1.8p23f + 8);
  const auto low8 = hn::Set(words, 0xFF), low16 = hn::Set(words, 0xFFFF);
  alignas(16) static constexpr uint8_t transposed[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const auto order = hn::LoadDup128(bytes, transposed);

  const int64_t step = std::max(group, kScaleColumns / group * group);
  bool finite = true;
  for (int64_t begin = 0; begin < cols; begin += step) {
    const int64_t end = std::min(cols, begin + step), groups = (end - begin) / group;
    alignas(64) float inverse[kMaxGroups * kInt4Rows];
    uint16_t scales[kMaxGroups * kInt4Rows];
    for (int64_t g = 0; g < groups; ++g)
      findExtremes(values + begin + g * group, stride, group, inverse + g * kInt4Rows);
    const int64_t count = (groups * kInt4Rows + lanes - 1) / lanes * lanes;
    std::fill(inverse + groups * kInt4Rows, inverse + count, 0.0f);
    finite &= makeScales(panel.scale, inverse, scales, count);

    for (int64_t g = 0; g < groups; ++g, out += groupBytes) {
      std::memcpy(out + 2 * lane, scales + g * kInt4Rows, sizeof(uint16_t) * kInt4Rows);
      const float *by = inverse + g * kInt4Rows;
      auto *to = reinterpret_cast<uint8_t *>(out) + 2 * panel.width + 4 * lane;
      for (int64_t t = 0; t < group; t += 32)
        for (int64_t i = 0; i < 16; i += lanes) {
          const int64_t next = (begin + g * group + t) * ahead.bytesPerColumn;
          if (i == 0 && ahead.bytesPerColumn && next % cacheLine == 0)
            for (const std::byte *row : ahead.rows)
              __builtin_prefetch(row + next);
          const float *at = values + begin + g * group + t + i;
          // In the last byte of each word the code of a column, plus 8; then that of one column in four rows.
          auto code = [&](int64_t row, int64_t half) HWY_ATTR {
            auto product = hn::MulAdd(hn::LoadU(floats, at + row * stride + half), hn::Set(floats, by[row]), magic);
            return hn::BitCast(words, product);
          };
          auto rows = [&](int64_t half) HWY_ATTR {
            auto rows01 = hn::OrAnd(hn::ShiftLeft<8>(code(1, half)), code(0, half), low8);
            auto rows23 = hn::OrAnd(hn::ShiftLeft<8>(code(3, half)), code(2, half), low8);
            auto all = hn::BitCast(codes, hn::OrAnd(hn::ShiftLeft<16>(rows23), rows01, low16));
            // A scale that was rounded leaves room for codes beyond the last.
            return hn::BitCast(words, hn::Max(hn::Zero(codes), hn::Min(hn::Set(codes, 15), all)));
          };
          auto pairs = hn::Or(rows(0), hn::ShiftLeft<4>(rows(16)));
          // Each word holds one column of four rows; lanes want one row of four columns.
          alignas(64) uint8_t quads[64];
          hn::Store(hn::TableLookupBytes(hn::BitCast(bytes, pairs), order), bytes, quads);
          for (int64_t q = 0; q < lanes / 4; ++q)
            hn::StoreU(hn::Load(block, quads + 16 * q), block, to + (t / 8 + i / 4 + q) * 4 * panel.width);
        }
    }
  }
  return finite;
}

#endif // HWY_SCALAR

} // namespace moec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moec {

HWY_EXPORT(packInt4Rows);

bool packInt4(const Int4Panel &panel, const float *values, int64_t stride, int64_t cols, int64_t lane, std::byte *out,
              const ReadAhead &ahead) {
  return HWY_DYNAMIC_DISPATCH(packInt4Rows)(panel, values, stride, cols, lane, out, ahead);
}

void placeInt4(const Int4Panel &panel, const uint8_t *codes, const uint16_t *scales, int64_t cols, int64_t lane,
               std::byte *out) {
  const int64_t groups = cols / panel.group;
  for (int64_t g = 0; g < groups; ++g, out += panel.groupBytes())
    for (int64_t r = 0; r < kInt4Rows; ++r) {
      std::memcpy(out + 2 * (lane + r), &scales[r * groups + g], sizeof(uint16_t));
      const uint8_t *row = codes + r * cols + g * panel.group;
      for (int64_t t = 0; t < panel.group; t += 32)
        for (int64_t q = 0; q < 4; ++q) {
          std::byte *to = out + 2 * panel.width + ((t / 8 + q) * panel.width + lane + r) * 4;
          for (int64_t j = 0; j < 4; ++j)
            to[j] = static_cast<std::byte>(row[t + 4 * q + j] | row[t + 16 + 4 * q + j] << 4);
        }
    }
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
  std::string found = "tensor " + quote(tensor) + " holds " + numberText(worst);
  if (!std::isfinite(worst))
    return Error{found + ", but weights must be numbers"};
  return Error{found + ", which is too large for int4 codes with scales in " + std::string(toString(scale))};
}

} // namespace moec
#endif // HWY_ONCE
