// RUN: split-file %s %t
// RUN: not emit-kernel %t/groups.mlir 2>&1 | FileCheck %s --check-prefix=GROUPS
// RUN: not emit-kernel %t/width.mlir 2>&1 | FileCheck %s --check-prefix=WIDTH
// RUN: not emit-kernel %t/scales.mlir 2>&1 | FileCheck %s --check-prefix=SCALES
// RUN: not emit-kernel %t/width.mlir --level=x86-64-v9 2>&1 | FileCheck %s --check-prefix=LEVEL

//--- groups.mlir
// GROUPS: emit-kernel: r: 10 experts cannot be cut into 4 groups
exec.kernel @r "route" {experts = 10, topk = 2, groups = 4, topk_groups = 2, sigmoid = true, group_top2_sum = true,
    normalize = true, bias = false, scale = 1.0, logits_stride = 10}
//--- width.mlir
// WIDTH: emit-kernel: c: width 24 must be a multiple of 16 that holds 24
// LEVEL: emit-kernel: no level 'x86-64-v9'
exec.kernel @c "cache_append" {latent = 16, rope = 8, width = 24, latent_stride = 16, rope_stride = 8}
//--- scales.mlir
// SCALES: emit-kernel: g: only F8_E4M3 weights have scales
exec.kernel @g "gemm" {weight = "bf16", n = 64, k = 64, batch = 1, scale_cols = 16, x_stride = 64, x_batch = 0,
    y_stride = 64, y_batch = 0, residual_stride = 0, epilogue = "none", routing = "none", topk = 0, rows = "T"}
