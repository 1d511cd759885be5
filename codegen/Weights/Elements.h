// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Runs of elements between their stored form and f32.

#ifndef MOEC_CODEGEN_WEIGHTS_ELEMENTS_H
#define MOEC_CODEGEN_WEIGHTS_ELEMENTS_H

#include "dialects/Moe/Recipe.h"
#include "runtime/Support/DType.h"
#include "runtime/Support/Result.h"

#include "mlir/IR/BuiltinTypes.h"

#include <cmath>
#include <cstring>
#include <string>

namespace moec {

inline bool isWeightType(DType type) {
  return type == DType::F32 || type == DType::F16 || type == DType::BF16 || type == DType::F8E4M3;
}

/// The stored form of an MLIR element type.
inline Result<DType> dtypeOf(mlir::Type type) {
  if (std::optional<DType> stored = mlir::moe::storedType(type))
    return *stored;
  return Error{"no weight can be stored in this element type"};
}

/// `data[i] = values[i]` in the stored form, to nearest even.
inline void narrow(DType type, const float *values, std::byte *data, int64_t count) {
  switch (type) {
  case DType::F32:
    std::memcpy(data, values, count * sizeof(float));
    return;
  case DType::BF16:
  case DType::F16:
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits = type == DType::BF16 ? floatToBf16(values[i]) : floatToF16(values[i]);
      std::memcpy(data + 2 * i, &bits, 2);
    }
    return;
  case DType::F8E4M3:
    for (int64_t i = 0; i < count; ++i)
      data[i] = static_cast<std::byte>(floatToF8e4m3(values[i]));
    return;
  default:
    assert(false && "not a weight type");
  }
}

/// Rounds each value to what `type` can hold.
inline void roundTo(DType type, float *values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    switch (type) {
    case DType::BF16:
      values[i] = bf16ToFloat(floatToBf16(values[i]));
      break;
    case DType::F16:
      values[i] = f16ToFloat(floatToF16(values[i]));
      break;
    case DType::F8E4M3:
      values[i] = f8e4m3ToFloat(floatToF8e4m3(values[i]));
      break;
    default:
      return;
    }
}

} // namespace moec

#endif // MOEC_CODEGEN_WEIGHTS_ELEMENTS_H
