// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What both forms of latent attention share: the softmax over one page and the
/// runs of a step.

#ifndef MOEC_CODEGEN_CPU_ATTENTIONCOMMON_H
#define MOEC_CODEGEN_CPU_ATTENTIONCOMMON_H

#include "codegen/Cpu/KernelBuilder.h"

namespace moec::cpu {

/// The running softmax of one row.
struct Softmax {
  Val maximum, sum;
  Val rescale; ///< what the sums of earlier pages are multiplied by
};

/// Folds the page's dot products `row` f32[page tokens], of which the first `entries` (at least 1) count, into the
/// softmax so far and replaces them by exp(scale * dot - maximum), 0 where they do not count.
Softmax foldPage(KernelBuilder &b, Ptr row, Val entries, double scale, Val maximum, Val sum);

/// Whether the run around `token`, its longest stretch of neighbours in `slots` of one slot, has at least `length`
/// tokens (i1). Looks at no more than `length` - 1 tokens to each side.
Val runHasAtLeast(KernelBuilder &b, Ptr slots, Val token, int64_t length);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_ATTENTIONCOMMON_H
