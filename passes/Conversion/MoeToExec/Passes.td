// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_PASSES_CONVERSION_MOETOEXEC_PASSES_TD
#define MOEC_PASSES_CONVERSION_MOETOEXEC_PASSES_TD

include "mlir/Pass/PassBase.td"

def MoeToExecPass : Pass<"moe-to-exec", "::mlir::ModuleOp"> {
  let summary = "Lower the step function to a list of kernel launches";
  let description = [{
    Replaces `moe.cache` symbols and `func.func @step(tokens, positions, slots, rows) -> logits`
    by `exec.cache`, `exec.weight`, `exec.kernel` and one `exec.program @step`. Each op becomes
    one launch or a few; equal kernel specs and equal weights are one symbol. Weights get the
    packing that their consumer reads; FP8 block weights of linear layers and experts stay FP8
    with their scales beside them where the target has such kernels. `split` and `reshape`
    become views, never copies. Attributes of the module stay.

    Run it after the fusions of passes/Moe: `moe.attention` and a free `moe.cache_append` have
    no kernels, `moe-fuse-mla` turns them into `moe.mla_attention`. Buffers get their place
    from `exec-plan-memory` afterwards.
  }];
  let options = [Option<"maxTokens", "max-tokens", "int64_t", /*default=*/"512",
      "Most tokens, and most rows of logits, in one step">];
  let statistics = [Statistic<"numLaunches", "num-launches", "Launches in the program">,
                    Statistic<"numKernels", "num-kernels", "Distinct kernels">,
                    Statistic<"numWeights", "num-weights", "Distinct weights">];
  let dependentDialects = ["::mlir::exec::ExecDialect", "::mlir::moe::MoeDialect"];
}

#endif
