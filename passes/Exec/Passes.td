// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_PASSES_EXEC_PASSES_TD
#define MOEC_PASSES_EXEC_PASSES_TD

include "mlir/Pass/PassBase.td"

def FuseRoundingPass : Pass<"exec-fuse-rounding", "::mlir::ModuleOp"> {
  let summary = "Let kernels store what they compute as it is read: rounded";
  let description = [{
    ```
    exec.launch @gemm_int4_g32_n1408_k2048_e64_x8_gather_swiglu(%x, %w, %hidden, ..)
    exec.launch @quantize_rows_d1408(%hidden, %codes) ..
    ->
    exec.launch @gemm_int4_g32_n1408_k2048_e64_x8_gather_swiglu_to8(%x, %w, %codes, ..)
    ```

    Where a buffer is read by one launch alone, which rounds all its rows to bf16 or, with a scale for each 32 columns, to
    int8, the launches that write it store them so: a launch, and a pass over memory, less. Those may be of kinds
    `gemm`, and `mla_expanded`, which sums up in f32 and stores the rounded rows beside; all of the buffer's must be.
    Each row is rounded as it was, so results do not change.
  }];
  let statistics = [Statistic<"numFused", "num-fused", "Launches of nothing but rounding that went">];
}

def FuseRowsPass : Pass<"exec-fuse-rows", "::mlir::ModuleOp"> {
  let summary = "Launch kernels that work row by row together";
  let description = [{
    ```
    exec.launch @rms_norm_d2048(%x, %g, %h) grid affine_map<(T, R) -> (T)> ..
    exec.launch @gemm_router(%h, %w, %scores) ..
    exec.launch @quantize_rows_d2048(%h, %q) grid affine_map<(T, R) -> (T)> ..
    ->
    exec.launch @rms_norm_d2048_and_quantize_rows_d2048(%x, %g, %h, %h, %q) grid affine_map<(T, R) -> (T)> ..
    exec.launch @gemm_router(%h, %w, %scores) ..
    ```

    All threads wait for each other after each launch. A kernel of which each task works on one row
    (`moec::worksOnRows`) need not wait for the rows of others: it joins the nearest launch before it that works on rows,
    has the same grid, and that it may move up to, past launches it shares no written memory with. With those it joins
    it may share only buffers that have a row for each task. Launches with `run_from` or `run_below` are left alone, and
    so is a `combine` where no activations are rounded: calibration, which takes such programs, changes what it wrote.

    Kernels become parts of one of kind `rows`; those that no launch is left of are erased. Each row is computed as
    it was, so results do not change. Run it before `exec-plan-memory`: a buffer that a part has read may not be
    written by a later one for another row.
  }];
  let statistics = [Statistic<"numJoined", "num-joined", "Launches that joined others">];
}

def FuseChainsPass : Pass<"exec-fuse-chains", "::mlir::ModuleOp"> {
  let summary = "Launch kernels together that need some tasks of the one before, not all";
  let description = [{
    ```
    exec.launch @gemm_router(%x, %w, %logits) ..
    exec.launch @route(%logits, %weights, %chosen) ..
    exec.launch @dispatch(%chosen, %offsets, %active, %order) ..
    ->
    exec.launch @chain(%x, %w, %logits, %logits, %weights, %chosen, %chosen, %offsets, %active, %order, %arrivals) ..
    ```

    Chains of launches that follow one another without others between them become one launch each:

    - a gemm and what reads its rows (kind `gemm_chain`): the scores of a router, the `route` that reads them, and every
      `dispatch` of its choice, or a head and the `argmax` of its candidates. Rows are read by who ends the last of them,
      all are sorted by who ends the last rows. A router is left alone where no activations are rounded, as in
      `exec-fuse-rows`.
    - `mla_combine` and the gemm of the values: a head's rows are put together by the task that multiplies them (kind
      `mla_values`).

    Each kernel computes what it did, so results do not change. Run it before `exec-plan-memory`, and after
    `exec-fuse-rows`, which may move what lies between the launches of a chain.
  }];
  let statistics = [Statistic<"numJoined", "num-joined", "Launches that joined the one before">];
}

def PlanMemoryPass : Pass<"exec-plan-memory", "::mlir::exec::ProgramOp"> {
  let summary = "Give each buffer its place in one arena";
  let description = [{
    A buffer lives from the first to the last launch that has it, or a view of it, as an
    argument. Buffers whose lives do not meet may share memory; a buffer that one launch reads
    and another that it writes never do. The largest buffers are placed first, each into the
    smallest gap that holds it. Sizes are those at `T = R = max_tokens`; offsets are multiples
    of 64 bytes, and at least 128 bytes that belong to no buffer alive at the same time lie
    behind each buffer, since kernels may load, not use, what is there. A `kept` buffer shares with none. A buffer that
    no launch has is erased, with its views.

    Sets `offset` of each `exec.buffer` and `arena_bytes` of the program; what an earlier run
    set is replaced.
  }];
  let statistics = [Statistic<"bytesUnshared", "bytes-unshared", "Bytes of all buffers side by side">,
                    Statistic<"bytesShared", "bytes-shared", "Bytes of the arena">];
}

#endif
