// RUN: split-file %s %t
// RUN: not emit-kernel %t/groups.mlir 2>&1 | FileCheck %s --check-prefix=GROUPS
// RUN: not emit-kernel %t/width.mlir 2>&1 | FileCheck %s --check-prefix=WIDTH
// RUN: not emit-kernel %t/scales.mlir 2>&1 | FileCheck %s --check-prefix=SCALES
// RUN: not emit-kernel %t/part.mlir 2>&1 | FileCheck %s --check-prefix=PART
// RUN: not emit-kernel %t/output.mlir 2>&1 | FileCheck %s --check-prefix=OUTPUT
// RUN: not emit-kernel %t/plain-groups.mlir 2>&1 | FileCheck %s --check-prefix=PLAIN
// RUN: not emit-kernel %t/members.mlir 2>&1 | FileCheck %s --check-prefix=MEMBERS
// RUN: not emit-kernel %t/member.mlir 2>&1 | FileCheck %s --check-prefix=MEMBER
// RUN: not emit-kernel %t/cache.mlir 2>&1 | FileCheck %s --check-prefix=CACHE
// RUN: not emit-kernel %t/codes.mlir 2>&1 | FileCheck %s --check-prefix=CODES
// RUN: not emit-kernel %t/rows.mlir 2>&1 | FileCheck %s --check-prefix=ROWS
// RUN: not emit-kernel %t/chain.mlir 2>&1 | FileCheck %s --check-prefix=CHAIN
// RUN: not emit-kernel %t/values.mlir 2>&1 | FileCheck %s --check-prefix=VALUES
// RUN: not emit-kernel %t/width.mlir --level=x86-64-v9 2>&1 | FileCheck %s --check-prefix=LEVEL

//--- groups.mlir
// GROUPS: emit-kernel: r: 10 experts cannot be cut into 4 groups
exec.kernel @r "route" {experts = 10, topk = 2, groups = 4, topk_groups = 2, sigmoid = true, group_top2_sum = true,
    normalize = true, bias = false, scale = 1.0, logits_stride = 10, shared = 0, rows = "T"}
//--- width.mlir
// WIDTH: emit-kernel: c: width 24 must be a multiple of 16 that holds 24
// LEVEL: emit-kernel: no level 'x86-64-v9'
exec.kernel @c "cache_append" {latent = 16, rope = 8, width = 24, latent_stride = 16, rope_stride = 8, cache = "f32", codes = "none"}
//--- cache.mlir
// CACHE: emit-kernel: c: a cache of F16 is not supported
exec.kernel @c "cache_append" {latent = 16, rope = 8, width = 32, latent_stride = 16, rope_stride = 8, cache = "f16", codes = "none"}
//--- codes.mlir
// CODES: emit-kernel: c: entries in codes are read as bf16
exec.kernel @c "cache_append" {latent = 16, rope = 8, width = 32, latent_stride = 16, rope_stride = 8, cache = "f32", codes = "int8"}
//--- scales.mlir
// SCALES: emit-kernel: g: only F8_E4M3 weights have scales
exec.kernel @g "gemm" {weight = "bf16", n = 64, k = 64, batch = 1, scale_cols = 16, group = 0, group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 64, x_batch = 0,
    y_stride = 64, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "none", topk = 0, rows = "T"}
//--- part.mlir
// PART: emit-kernel: g: group 96 must be a multiple of 32 whose units divide k 128
exec.kernel @g "gemm" {weight = "u8", n = 64, k = 128, batch = 1, scale_cols = 0, group = 96, group_scale = "f16", input = "f32", output = "f32", output_offset = 0,
    x_stride = 128, x_batch = 0, y_stride = 64, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "none",
    topk = 0, rows = "T"}
//--- output.mlir
// OUTPUT: emit-kernel: g: 48 columns are no whole groups of 32 codes
exec.kernel @g "gemm" {weight = "bf16", n = 48, k = 64, batch = 1, scale_cols = 0, group = 0, group_scale = "f16", input = "f32", output = "u8", output_offset = 8, x_stride = 64, x_batch = 0,
    y_stride = 80, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "none", topk = 0, rows = "T"}
//--- plain-groups.mlir
// PLAIN: emit-kernel: g: U8 weights, and no others, have groups
exec.kernel @g "gemm" {weight = "bf16", n = 64, k = 128, batch = 1, scale_cols = 0, group = 32, group_scale = "f16", input = "f32", output = "f32", output_offset = 0,
    x_stride = 128, x_batch = 0, y_stride = 64, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "none",
    topk = 0, rows = "T"}
//--- members.mlir
// MEMBERS: emit-kernel: d: 2 members, but 3 experts
exec.kernel @d "dispatch" {experts = 3, topk = 2, members = array<i64: 0, 4>, rows = "T"}
//--- member.mlir
// MEMBER: emit-kernel: c: members must be numbers from 0 to 8191
exec.kernel @c "combine" {topk = 2, width = 16, y_stride = 16, residual_stride = 0, out_stride = 16, residual = false,
    members = array<i64: 0, 9000>, rows = "T"}
//--- rows.mlir
// ROWS: emit-kernel: r: dispatch does not work on rows
exec.kernel @r "rows" {parts = [
  {kind = "dispatch", spec = {experts = 3, topk = 2, members = array<i64>, rows = "T"}},
  {kind = "dispatch", spec = {experts = 3, topk = 2, members = array<i64>, rows = "T"}}]}
//--- chain.mlir
// CHAIN: emit-kernel: r: a chain begins with a gemm and a route, or a gemm and an argmax
exec.kernel @r "gemm_chain" {parts = [
  {kind = "dispatch", spec = {experts = 3, topk = 2, members = array<i64>, rows = "T"}},
  {kind = "dispatch", spec = {experts = 3, topk = 2, members = array<i64>, rows = "T"}}]}
//--- values.mlir
// VALUES: emit-kernel: v: the values of attention are a gemm of all heads' latents
exec.kernel @v "mla_values" {parts = [
  {kind = "mla_combine", spec = {heads = 2, latent = 16, out_stride = 32, out_head = 16, run_below = 0}},
  {kind = "gemm", spec = {weight = "bf16", n = 64, k = 16, batch = 3, scale_cols = 0, group = 0, codes = "int4",
    group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 48, x_batch = 16, y_stride = 192,
    y_batch = 64, residual_stride = 0, epilogue = "none", routing = "none", topk = 0, rows = "T"}}]}
