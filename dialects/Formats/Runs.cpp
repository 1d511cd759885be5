// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Runs.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Highway compiles what follows once for each of its targets and picks one when it is called. Those of x86 without
// fused multiply-add are left out: machines that lack it take the scalar form.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dialects/Formats/Runs.cpp"
#include <hwy/foreach_target.h> // must come before highway.h

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moec::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Vectors of at most 16 lanes: a cache line, and half a group.
using Floats = hn::CappedTag<float, 16>;
using Words = hn::RebindToUnsigned<Floats>;

HWY_NOINLINE void widenBf16(const std::byte *data, float *out, int64_t count) {
  const Words words;
  const hn::Rebind<uint16_t, Words> halves;
  const auto lanes = static_cast<int64_t>(hn::Lanes(words));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    auto bits = hn::PromoteTo(words, hn::LoadU(halves, reinterpret_cast<const uint16_t *>(data + 2 * i)));
    hn::StoreU(hn::BitCast(Floats(), hn::ShiftLeft<16>(bits)), Floats(), out + i);
  }
  for (; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data + 2 * i, sizeof(bits));
    out[i] = bf16ToFloat(bits);
  }
}

HWY_NOINLINE bool scaleF8(const uint8_t *data, const float *scales, int64_t group, int64_t first, float *out,
                          int64_t count) {
  const hn::RebindToSigned<Words> ints;
  const hn::Rebind<int8_t, Words> bytes;
  // Sign, exponent and mantissa go to where f32 has them, which is 2^-120 times the value, subnormals included.
  const auto places = hn::Set(ints, static_cast<int32_t>(0x87F00000)), ones = hn::Set(ints, 0x07F00000);
  const auto power = hn::Set(Floats(), 0x1p120f);
  auto most = hn::Zero(ints);
  int tailMost = 0;
  const auto lanes = static_cast<int64_t>(hn::Lanes(ints));
  for (int64_t i = 0, end; i < count; first = 0, ++scales) {
    end = std::min(count, i + group - first);
    const float scale = *scales;
    const auto by = hn::Set(Floats(), scale);
    for (; i + lanes <= end; i += lanes) {
      auto code = hn::PromoteTo(ints, hn::LoadU(bytes, reinterpret_cast<const int8_t *>(data) + i));
      auto bits = hn::And(hn::ShiftLeft<20>(code), places);
      most = hn::Max(most, hn::And(bits, ones));
      // The first product is exact.
      hn::StoreU(hn::Mul(hn::Mul(hn::BitCast(Floats(), bits), power), by), Floats(), out + i);
    }
    for (; i < end; ++i) { // the same for one; a call would take the vectors out of their registers
      auto bits = static_cast<uint32_t>(static_cast<int8_t>(data[i])) << 20 & 0x87F00000u;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      out[i] = value * 0x1p120f * scale;
      tailMost = std::max(tailMost, data[i] & 0x7F);
    }
  }
  return tailMost != 0x7F && hn::AllFalse(ints, hn::Eq(most, ones));
}

} // namespace moec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moec {

HWY_EXPORT(widenBf16);
HWY_EXPORT(scaleF8);

bool scaleF8E4M3(const std::byte *data, const float *scales, int64_t group, int64_t first, float *out, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(scaleF8)(reinterpret_cast<const uint8_t *>(data), scales, group, first, out, count);
}

bool widen(DType type, const std::byte *data, float *out, int64_t count) {
  switch (type) {
  case DType::F32:
    std::memcpy(out, data, count * sizeof(float));
    return true;
  case DType::BF16:
    HWY_DYNAMIC_DISPATCH(widenBf16)(data, out, count);
    return true;
  case DType::F8E4M3: {
    const float one = 1;
    return scaleF8E4M3(data, &one, count, /*first=*/0, out, count);
  }
  case DType::F8E8M0:
  case DType::U8:
    for (int64_t i = 0; i < count; ++i)
      out[i] = f8e8m0ToFloat(static_cast<uint8_t>(data[i]));
    return true;
  default:
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, data + 2 * i, 2);
      out[i] = f16ToFloat(bits);
    }
    return true;
  }
}

float roundOnce(DType type, double value) {
  auto nearest = static_cast<float>(value);
  if (type == DType::F32)
    return nearest;
  // Rounding to nearest twice may differ from once. Rounding to odd first does not: an inexact value gets an odd last
  // bit, so that the second rounding never sees a tie that was none.
  if (std::isfinite(nearest) && static_cast<double>(nearest) != value) {
    uint32_t bits;
    std::memcpy(&bits, &nearest, sizeof(bits));
    if (bits % 2 == 0)
      nearest = std::nextafter(nearest, value > nearest ? HUGE_VALF : -HUGE_VALF);
  }
  return type == DType::F16 ? f16ToFloat(floatToF16(nearest)) : bf16ToFloat(floatToBf16(nearest));
}

} // namespace moec
#endif // HWY_ONCE
