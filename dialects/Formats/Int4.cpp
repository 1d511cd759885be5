// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Int4.h"

#include "dialects/Formats/Int4OfF8.h"
#include "runtime/Support/Text.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

// Highway compiles what follows once for each of its targets and picks one when it is called. Those of x86 without
// fused multiply-add are left out: machines that lack it take the scalar form.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dialects/Formats/Int4.cpp"
#include <hwy/foreach_target.h> // must come before highway.h

#include "dialects/Formats/Int4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moec::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR

HWY_NOINLINE bool packRows(const Int4Panel &panel, const StoredRows &rows, int64_t cols, int64_t lane, std::byte *out,
                           const std::byte *) {
  std::vector<float> values(kInt4Rows * cols);
  for (int64_t r = 0; r < kInt4Rows; ++r)
    widen(rows.type, rows.data + r * rows.stride, &values[r * cols], cols);
  for (int64_t c = 0; c < cols; c += panel.group, out += panel.groupBytes())
    for (int64_t r = 0; r < kInt4Rows; ++r) {
      const float *x = &values[r * cols + c];
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

/// Columns whose scales are found before their codes, so that the latter wait for nothing.
constexpr int64_t kScaleColumns = 1024, kMaxGroups = kScaleColumns / 32;

/// Values that are stored as `T`, at any alignment.
template <typename T> HWY_INLINE hn::Vec<Floats> valuesAt(const std::byte *data) {
  const Floats floats;
  const hn::Rebind<T, Floats> stored;
  auto values = hn::LoadU(stored, reinterpret_cast<const T *>(data));
  if constexpr (std::is_same_v<T, float>)
    return values;
  else
    return hn::PromoteTo(floats, values);
}

/// The extreme of each of four rows' `group` values.
template <typename T> HWY_INLINE void findExtremes(const std::byte *data, int64_t stride, int64_t group, float *out) {
  const Words words;
  const auto lanes = static_cast<int64_t>(hn::Lanes(words));
  // Magnitude above sign: the largest belongs to the value of largest magnitude, the negative one of two.
  auto key = [&](const std::byte *at) HWY_ATTR { return hn::RotateRight<31>(hn::BitCast(words, valuesAt<T>(at))); };
  auto largest = [&](const std::byte *row) HWY_ATTR {
    auto most = key(row);
    for (int64_t i = lanes; i < group; i += lanes)
      most = hn::Max(most, key(row + i * static_cast<int64_t>(sizeof(T))));
    return most;
  };
  auto a = largest(data), b = largest(data + stride), c = largest(data + 2 * stride), d = largest(data + 3 * stride);
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
  const auto lanes = static_cast<int64_t>(hn::Lanes(floats));
  const auto infinity = hn::Set(floats, HUGE_VALF);
  bool finite = true;
  for (int64_t i = 0; i < count; i += lanes) {
    // Adding 0 makes +0 of -0.
    auto exact = hn::Add(hn::Mul(hn::Load(floats, values + i), hn::Set(floats, -0.125f)), hn::Zero(floats));
    auto [rounded, scale] = roundScale(type, exact);
    hn::StoreU(rounded, Halves(), bits + i);
    finite &= hn::AllTrue(floats, hn::Lt(hn::Abs(scale), infinity));
    auto inverse = hn::Div(hn::Set(floats, 1.0f), scale);
    hn::Store(hn::IfThenElseZero(hn::Lt(hn::Abs(inverse), infinity), inverse), floats, values + i);
  }
  return finite;
}

template <typename T>
HWY_NOINLINE bool packRowsOf(const Int4Panel &panel, const StoredRows &rows, int64_t cols, int64_t lane, std::byte *out,
                             const std::byte *next) {
  static_assert(kInt4Rows == 4);
  const Floats floats;
  const Words words;
  const Bytes bytes;
  const hn::Repartition<int8_t, Words> codes;
  const hn::FixedTag<uint8_t, 16> block;
  const auto lanes = static_cast<int64_t>(hn::Lanes(floats));
  const int64_t group = panel.group, groupBytes = panel.groupBytes(), stride = rows.stride;
  constexpr int64_t size = sizeof(T);
  const std::byte *data = rows.data;

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
      findExtremes<T>(data + (begin + g * group) * size, stride, group, inverse + g * kInt4Rows);
    const int64_t count = (groups * kInt4Rows + lanes - 1) / lanes * lanes;
    std::fill(inverse + groups * kInt4Rows, inverse + count, 0.0f);
    finite &= makeScales(panel.scale, inverse, scales, count);

    for (int64_t g = 0; g < groups; ++g, out += groupBytes) {
      std::memcpy(out + 2 * lane, scales + g * kInt4Rows, sizeof(uint16_t) * kInt4Rows);
      const float *by = inverse + g * kInt4Rows;
      auto *to = reinterpret_cast<uint8_t *>(out) + 2 * panel.width + 4 * lane;
      for (int64_t t = 0; t < group; t += 32)
        for (int64_t i = 0; i < 16; i += lanes) {
          const int64_t col = begin + g * group + t;
          if (i == 0)
            readAhead(next, stride, col * size, (col + 32) * size);
          const std::byte *at = data + (col + i) * size;
          // In the last byte of each word the code of a column, plus 8; then that of one column in four rows.
          auto code = [&](int64_t row, int64_t half) HWY_ATTR {
            auto value = valuesAt<T>(at + row * stride + half * size);
            return hn::BitCast(words, hn::MulAdd(value, hn::Set(floats, by[row]), magic));
          };
          auto columns = [&](int64_t half) HWY_ATTR {
            auto rows01 = hn::OrAnd(hn::ShiftLeft<8>(code(1, half)), code(0, half), low8);
            auto rows23 = hn::OrAnd(hn::ShiftLeft<8>(code(3, half)), code(2, half), low8);
            auto all = hn::BitCast(codes, hn::OrAnd(hn::ShiftLeft<16>(rows23), rows01, low16));
            // A scale that was rounded leaves room for codes beyond the last.
            return hn::BitCast(words, hn::Max(hn::Zero(codes), hn::Min(hn::Set(codes, 15), all)));
          };
          auto pairs = hn::Or(columns(0), hn::ShiftLeft<4>(columns(16)));
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

HWY_NOINLINE bool packRows(const Int4Panel &panel, const StoredRows &rows, int64_t cols, int64_t lane, std::byte *out,
                           const std::byte *next) {
  return rows.type == DType::F32 ? packRowsOf<float>(panel, rows, cols, lane, out, next)
                                 : packRowsOf<hwy::bfloat16_t>(panel, rows, cols, lane, out, next);
}

#endif // HWY_SCALAR

} // namespace moec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moec {

HWY_EXPORT(packRows);

bool canPackInt4(const Int4Panel &panel, const StoredRows &rows) {
  if (rows.type == DType::F8E4M3)
    return rows.scaleCols % panel.group == 0 && rows.first % panel.group == 0;
  return rows.type == DType::F32 || rows.type == DType::BF16;
}

bool packInt4(const Int4Panel &panel, const StoredRows &rows, int64_t cols, int64_t lane, std::byte *out,
              const std::byte *next) {
  assert(canPackInt4(panel, rows));
  if (rows.type == DType::F8E4M3)
    return packInt4OfF8(panel, rows, cols, lane, out, next);
  return HWY_DYNAMIC_DISPATCH(packRows)(panel, rows, cols, lane, out, next);
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
