// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Elementary functions on values, as code without library calls.

#ifndef MOEC_CODEGEN_CPU_MATH_H
#define MOEC_CODEGEN_CPU_MATH_H

#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// e^x of f32 (scalar or vector): within 1 ulp where the result is normal, gradual underflow to 0
/// with one more rounding, inf above 88.73, 0 for -inf, NaN for NaN.
Val exp(KernelBuilder &b, Val x);

/// x / (1 + e^-x).
Val silu(KernelBuilder &b, Val x);

/// 1 / (1 + e^-x).
Val sigmoid(KernelBuilder &b, Val x);

struct SinCos {
  Val sin, cos; ///< f64, relative error below 2^-40 for |a| < 2^24
};
/// Of an f32 angle (scalar or vector), finite and below 2^24 in magnitude.
SinCos sinCos(KernelBuilder &b, Val angle);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_MATH_H
