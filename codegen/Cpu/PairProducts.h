// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Products of bf16 rows with a panel of bf16 weights, two columns at a time.

#ifndef MOEC_CODEGEN_CPU_PAIRPRODUCTS_H
#define MOEC_CODEGEN_CPU_PAIRPRODUCTS_H

#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// Row by row the panel's vectors of `sums[lane] = sum_k row[k] * panel[k][lane]`, for rows bf16[k] at `inputs` and a
/// panel bf16[k][kPanelWidth]. One chain over pairs of columns, each a `dot(sums, weights, row)` of words as
/// `KernelBuilder::dotBf16` takes them; a last column without a second one is beside a zero. With
/// `prefetched`, the panel is one of many that are read once, in order.
Vals pairProducts(KernelBuilder &b, llvm::ArrayRef<Ptr> inputs, Ptr panel, int64_t k, bool prefetched,
                  llvm::function_ref<Val(Val sums, Val weights, Val row)> dot);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_PAIRPRODUCTS_H
