// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_PASSES_EXEC_PASSES_TD
#define MOEC_PASSES_EXEC_PASSES_TD

include "mlir/Pass/PassBase.td"

def PlanMemoryPass : Pass<"exec-plan-memory", "::mlir::exec::ProgramOp"> {
  let summary = "Give each buffer its place in one arena";
  let description = [{
    A buffer lives from the first to the last launch that has it, or a view of it, as an
    argument. Buffers whose lives do not meet may share memory; a buffer that one launch reads
    and another that it writes never do. The largest buffers are placed first, each into the
    smallest gap that holds it. Sizes are those at `T = R = max_tokens`; offsets are multiples
    of 64 bytes, and at least 128 bytes that belong to no buffer alive at the same time lie
    behind each buffer, since kernels may load, not use, what is there. A buffer that no launch
    has is erased, with its views.

    Sets `offset` of each `exec.buffer` and `arena_bytes` of the program; what an earlier run
    set is replaced.
  }];
  let statistics = [Statistic<"bytesUnshared", "bytes-unshared", "Bytes of all buffers side by side">,
                    Statistic<"bytesShared", "bytes-shared", "Bytes of the arena">];
}

#endif
