// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/DType.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <limits>

namespace moec {

namespace {

struct DTypeRow {
  DType type;
  std::string_view name;
  int64_t bytes;
};

/// In the order of the enumerators, which index it.
constexpr DTypeRow rows[] = {
    {DType::F64, "F64", 8},        {DType::F32, "F32", 4},        {DType::F16, "F16", 2}, {DType::BF16, "BF16", 2},
    {DType::F8E4M3, "F8_E4M3", 1}, {DType::F8E8M0, "F8_E8M0", 1}, {DType::I64, "I64", 8}, {DType::I32, "I32", 4},
    {DType::I16, "I16", 2},        {DType::I8, "I8", 1},          {DType::U8, "U8", 1},   {DType::Bool, "BOOL", 1},
};

const DTypeRow &row(DType type) {
  const DTypeRow &found = rows[static_cast<size_t>(type)];
  assert(found.type == type && "rows must follow the enumerators");
  return found;
}

/// Rounds a finite magnitude (f32 bits, sign cleared) to the nearest code, ties
/// to even, of a format with `mantissaBits` and exponent bias `bias`, as if its
/// exponent had no upper end. Needs 2^(1 - bias - mantissaBits), the smallest
/// subnormal, to lie far above the f32 subnormals, which all round to 0.
uint64_t narrow(uint32_t magnitude, int mantissaBits, int bias) {
  int exponent = static_cast<int>(magnitude >> 23) - 127 + bias;
  uint64_t value = (magnitude & 0x7fffff) | 0x800000;
  // A mantissa that rounds up to the next power of two carries into the
  // exponent above it, which is the right code.
  int shift = 23 - mantissaBits;
  if (exponent >= 1)
    value += static_cast<uint64_t>(exponent - 1) << 23;
  else
    shift += 1 - exponent;
  if (shift > 25) // below half of the smallest subnormal
    return 0;
  uint64_t odd = (value >> shift) & 1;
  return (value + (uint64_t{1} << (shift - 1)) - 1 + odd) >> shift;
}

constexpr uint32_t infinityBits = 0x7f800000;

} // namespace

int64_t byteSize(DType type) { return row(type).bytes; }

std::string_view toString(DType type) { return row(type).name; }

std::optional<DType> dtypeFromString(std::string_view name) {
  for (const DTypeRow &candidate : rows)
    if (candidate.name == name)
      return candidate.type;
  return std::nullopt;
}

float bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

float f16ToFloat(uint16_t bits) {
  uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  uint32_t exponent = (bits >> 10) & 0x1f;
  uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0)
    return std::copysign(static_cast<float>(mantissa) * 0x1p-24f, std::bit_cast<float>(sign));
  uint32_t wide = exponent == 0x1f ? 0xff : exponent - 15 + 127;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

float f8e4m3ToFloat(uint8_t bits) {
  uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24;
  uint32_t exponent = (bits >> 3) & 0xf;
  uint32_t mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f)
    return std::bit_cast<float>(sign | 0x7fc00000);
  if (exponent == 0)
    return std::copysign(static_cast<float>(mantissa) * 0x1p-9f, std::bit_cast<float>(sign));
  return std::bit_cast<float>(sign | (exponent - 7 + 127) << 23 | mantissa << 20);
}

float f8e8m0ToFloat(uint8_t bits) {
  if (bits == 255)
    return std::numeric_limits<float>::quiet_NaN();
  // 2^-127 is an f32 subnormal: exponent field 0, top bit of the mantissa.
  return std::bit_cast<float>(bits == 0 ? 0x400000u : static_cast<uint32_t>(bits) << 23);
}

uint16_t floatToBf16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > infinityBits)
    return static_cast<uint16_t>(bits >> 16 | 0x40); // quiet, lest the payload be cut to an infinity
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

uint16_t floatToF16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > infinityBits)
    return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude == infinityBits)
    return static_cast<uint16_t>(sign | 0x7c00);
  return static_cast<uint16_t>(sign | std::min<uint64_t>(narrow(magnitude, 10, 15), 0x7c00));
}

uint8_t floatToF8e4m3(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  uint32_t sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  if (magnitude > infinityBits)
    return static_cast<uint8_t>(sign | 0x7f);
  if (magnitude == infinityBits)
    return static_cast<uint8_t>(sign | 0x7e);
  return static_cast<uint8_t>(sign | std::min<uint64_t>(narrow(magnitude, 3, 7), 0x7e));
}

} // namespace moec
