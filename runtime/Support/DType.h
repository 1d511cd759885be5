// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Element types of stored tensors and their exact conversions.

#ifndef MOEC_RUNTIME_SUPPORT_DTYPE_H
#define MOEC_RUNTIME_SUPPORT_DTYPE_H

#include <cstdint>
#include <optional>
#include <string_view>

namespace moec {

/// The element types that safetensors files may hold, as this project reads them.
enum class DType : uint8_t { F64, F32, F16, BF16, F8E4M3, F8E8M0, I64, I32, I16, I8, U8, Bool };

/// Bytes of one element.
int64_t byteSize(DType type);
/// The spelling in safetensors headers: "F32", "BF16", "F8_E4M3", ...
std::string_view toString(DType type);
std::optional<DType> dtypeFromString(std::string_view name);

/// Widening conversions are exact; every NaN code gives a NaN.
float bf16ToFloat(uint16_t bits);
/// IEEE binary16.
float f16ToFloat(uint16_t bits);
/// The `fn` variant: no infinities, 0x7f and 0xff are NaN.
/// Source: OCP 8-bit Floating Point Specification (OFP8) 1.0.
float f8e4m3ToFloat(uint8_t bits);
/// 2^(bits - 127); 255 is NaN. Source: OCP Microscaling Formats 1.0, sec. 5.4.1.
float f8e8m0ToFloat(uint8_t bits);
/// Narrowing conversions round to nearest even; NaN stays NaN with its sign.
/// What is too large for a bf16 or f16 becomes infinite, as IEEE 754 wants.
uint16_t floatToBf16(float value);
uint16_t floatToF16(float value);
/// Saturates to +-448, infinities too, as DeepSeek's quantizer does.
uint8_t floatToF8e4m3(float value);

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_DTYPE_H
