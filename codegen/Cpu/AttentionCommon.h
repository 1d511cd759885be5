// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What both forms of latent attention share: the runs of a step.

#ifndef MOEC_CODEGEN_CPU_ATTENTIONCOMMON_H
#define MOEC_CODEGEN_CPU_ATTENTIONCOMMON_H

#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// Whether the run around `token`, its longest stretch of neighbours in `slots` of one slot, has at least `length`
/// tokens (i1). Looks at no more than `length` - 1 tokens to each side.
Val runHasAtLeast(KernelBuilder &b, Ptr slots, Val token, int64_t length);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_ATTENTIONCOMMON_H
