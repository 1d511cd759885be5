// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Numbers into codes: what kernels that make rows, and kernels of nothing else, store rounded.

#ifndef MOEC_CODEGEN_CPU_ROUNDING_H
#define MOEC_CODEGEN_CPU_ROUNDING_H

#include "codegen/Common/KernelSpec.h"
#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// Stores `width` numbers (f32) at `from` as the records of QuantizeRowsSpec (i8) at `records`.
void storeRecords(KernelBuilder &b, Ptr from, Ptr records, int64_t width, int64_t scaleCols, int64_t offset);

/// Stores `width` numbers (f32) at `from` rounded to bf16 (i16) at `to`.
void storeBf16(KernelBuilder &b, Ptr from, Ptr to, int64_t width);

/// Stores a latent as codes (i8) at `codes` and their scales (f32), as CodedEntry has them.
void storeLatentCodes(KernelBuilder &b, Ptr from, int64_t width, CacheCodes kind, Ptr codes, Ptr scales);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_ROUNDING_H
