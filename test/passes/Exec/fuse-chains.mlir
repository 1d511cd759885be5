// RUN: moe-opt %s -exec-fuse-chains -split-input-file | FileCheck %s
// RUN: moe-opt %s -exec-fuse-chains -split-input-file -o %t
// RUN: moe-opt %t -exec-fuse-chains -split-input-file | diff %t -

exec.kernel @scores "gemm" {weight = "f32", n = 8, k = 64, batch = 1, scale_cols = 0, group = 0, codes = "int4",
  group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 64, x_batch = 0, y_stride = 8,
  y_batch = 0, residual_stride = 0, epilogue = "none", routing = "none", topk = 0, rows = "T"}
// Of rows that were rounded: nobody watches the program.
exec.kernel @rounded "gemm" {weight = "bf16", n = 64, k = 64, batch = 1, scale_cols = 0, group = 0, codes = "int4",
  group_scale = "f16", input = "bf16", output = "f32", output_offset = 0, x_stride = 64, x_batch = 0, y_stride = 64,
  y_batch = 0, residual_stride = 0, epilogue = "none", routing = "none", topk = 0, rows = "T"}
// CHECK: exec.kernel @gemm_f32_n8_k64_and_route_softmax_e8_top2_and_dispatch_e8_top2 "gemm_chain" {parts = [{kind = "gemm"
// CHECK-NOT: exec.kernel @dispatch
exec.kernel @route "route" {experts = 8, topk = 2, groups = 1, topk_groups = 1, sigmoid = false, group_top2_sum = false,
  normalize = false, bias = false, scale = 1.0, logits_stride = 8, shared = 0, rows = "T"}
exec.kernel @dispatch "dispatch" {experts = 8, topk = 2, members = array<i64>, rows = "T"}
exec.weight @router ["router"] recipe [] : memref<1x1x64x32xf32>
exec.weight @w ["w"] recipe [] : memref<1x2x64x32xbf16>

// Two layers: one buffer counts for both.
// CHECK-LABEL: exec.program @routers
exec.program @routers(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                      %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 100 {
  %x = exec.buffer : memref<?x64xf32>
  %h = exec.buffer : memref<?x64xbf16>
  %router = exec.weight_ref @router : memref<1x1x64x32xf32>
  %w = exec.weight_ref @w : memref<1x2x64x32xbf16>
  %logits = exec.buffer : memref<?x8xf32>
  %weights = exec.buffer : memref<?x2xf32>
  %chosen = exec.buffer : memref<?x2xi32>
  %offsets = exec.buffer : memref<9xi32>
  %active = exec.buffer : memref<9xi32>
  %order = exec.buffer {rows_per_token = 2 : i64} : memref<?xi32>
  // CHECK: %[[ARRIVALS:.*]] = exec.buffer {kept} : memref<3xi32>
  // CHECK-NOT: kept
  // CHECK: exec.launch @gemm_f32_n8_k64_and_route_softmax_e8_top2_and_dispatch_e8_top2(
  // CHECK-SAME: %[[ARRIVALS]]) grid #{{.*}} writes [2, 4, 5, 7, 8, 9, 10] {label = "gate + route"}
  exec.launch @scores(%x, %router, %logits) grid affine_map<(T, R) -> (T ceildiv 64)> writes [2] {label = "gate"}
    : memref<?x64xf32>, memref<1x1x64x32xf32>, memref<?x8xf32>
  exec.launch @route(%logits, %weights, %chosen) grid affine_map<(T, R) -> (T)> writes [1, 2] {label = "route"}
    : memref<?x8xf32>, memref<?x2xf32>, memref<?x2xi32>
  exec.launch @dispatch(%chosen, %offsets, %active, %order) grid affine_map<(T, R) -> (1)> writes [1, 2, 3]
    : memref<?x2xi32>, memref<9xi32>, memref<9xi32>, memref<?xi32>
  // CHECK-NEXT: exec.launch @rounded(
  exec.launch @rounded(%h, %w, %x) grid affine_map<(T, R) -> ((T ceildiv 64) * 2)> writes [2]
    : memref<?x64xbf16>, memref<1x2x64x32xbf16>, memref<?x64xf32>
  // CHECK-NEXT: exec.launch @gemm_f32_n8_k64_and_route_softmax_e8_top2_and_dispatch_e8_top2({{.*}}, %[[ARRIVALS]])
  exec.launch @scores(%x, %router, %logits) grid affine_map<(T, R) -> (T ceildiv 64)> writes [2]
    : memref<?x64xf32>, memref<1x1x64x32xf32>, memref<?x8xf32>
  exec.launch @route(%logits, %weights, %chosen) grid affine_map<(T, R) -> (T)> writes [1, 2]
    : memref<?x8xf32>, memref<?x2xf32>, memref<?x2xi32>
  exec.launch @dispatch(%chosen, %offsets, %active, %order) grid affine_map<(T, R) -> (1)> writes [1, 2, 3]
    : memref<?x2xi32>, memref<9xi32>, memref<9xi32>, memref<?xi32>
  // CHECK-NOT: exec.launch
  // CHECK: }
}

// The near miss: the route reads other logits.
// CHECK-LABEL: exec.program @other_logits
exec.program @other_logits(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                           %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 100 {
  %x = exec.buffer : memref<?x64xf32>
  %router = exec.weight_ref @router : memref<1x1x64x32xf32>
  %logits = exec.buffer : memref<?x8xf32>
  %others = exec.buffer : memref<?x8xf32>
  %weights = exec.buffer : memref<?x2xf32>
  %chosen = exec.buffer : memref<?x2xi32>
  // CHECK: exec.launch @scores(
  exec.launch @scores(%x, %router, %logits) grid affine_map<(T, R) -> (T ceildiv 64)> writes [2]
    : memref<?x64xf32>, memref<1x1x64x32xf32>, memref<?x8xf32>
  // CHECK-NEXT: exec.launch @route(
  exec.launch @route(%others, %weights, %chosen) grid affine_map<(T, R) -> (T)> writes [1, 2]
    : memref<?x8xf32>, memref<?x2xf32>, memref<?x2xi32>
}

// The near miss: the route is left out of steps that the scores are in.
// CHECK-LABEL: exec.program @fewer_steps
exec.program @fewer_steps(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                          %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 100 {
  %x = exec.buffer : memref<?x64xf32>
  %router = exec.weight_ref @router : memref<1x1x64x32xf32>
  %logits = exec.buffer : memref<?x8xf32>
  %weights = exec.buffer : memref<?x2xf32>
  %chosen = exec.buffer : memref<?x2xi32>
  // CHECK: exec.launch @scores(
  exec.launch @scores(%x, %router, %logits) grid affine_map<(T, R) -> (T ceildiv 64)> writes [2]
    : memref<?x64xf32>, memref<1x1x64x32xf32>, memref<?x8xf32>
  // CHECK-NEXT: exec.launch @route({{.*}} {run_from = 4 : i64}
  exec.launch @route(%logits, %weights, %chosen) grid affine_map<(T, R) -> (T)> writes [1, 2] {run_from = 4 : i64}
    : memref<?x8xf32>, memref<?x2xf32>, memref<?x2xi32>
}

// -----

exec.kernel @scores "gemm" {weight = "f32", n = 8, k = 64, batch = 1, scale_cols = 0, group = 0, codes = "int4",
  group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 64, x_batch = 0, y_stride = 8,
  y_batch = 0, residual_stride = 0, epilogue = "none", routing = "none", topk = 0, rows = "T"}
exec.kernel @route "route" {experts = 8, topk = 2, groups = 1, topk_groups = 1, sigmoid = false, group_top2_sum = false,
  normalize = false, bias = false, scale = 1.0, logits_stride = 8, shared = 0, rows = "T"}
exec.kernel @head "gemm" {weight = "f32", n = 8, k = 64, batch = 1, scale_cols = 0, group = 0, codes = "int4",
  group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 64, x_batch = 0, y_stride = 8,
  y_batch = 0, residual_stride = 0, epilogue = "argmax", routing = "none", topk = 0, rows = "R"}
exec.kernel @argmax "argmax" {count = 1, rows = "R"}
exec.kernel @combine "mla_combine" {heads = 2, latent = 16, out_stride = 32, out_head = 16, run_below = 8}
exec.kernel @values "gemm" {weight = "bf16", n = 64, k = 16, batch = 2, scale_cols = 0, group = 0, codes = "int4",
  group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 32, x_batch = 16, y_stride = 128,
  y_batch = 64, residual_stride = 0, epilogue = "none", routing = "none", topk = 0, rows = "T"}
exec.weight @router ["router"] recipe [] : memref<1x1x64x32xf32>
exec.weight @uv ["uv"] recipe [] : memref<2x2x16x32xbf16>

// No activations are rounded: calibration finds the route by its kind. Values of attention and the head it does not look
// for.
// CHECK-LABEL: exec.program @watched
exec.program @watched(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                      %pt: memref<?x?xi32>, %l: memref<?x8xf32>, %best: memref<?xi32>) max_tokens 100 {
  %parts = exec.buffer : memref<8x16x64xf32>
  %latents = exec.buffer : memref<?x2x16xf32>
  %uv = exec.weight_ref @uv : memref<2x2x16x32xbf16>
  %y = exec.buffer : memref<?x2x64xf32>
  // CHECK: exec.launch @mla_combine_h2_c16_and_gemm_bf16_n64_k16_h2(
  // CHECK-SAME: grid #{{.*}} writes [3, 6] {run_below = 8 : i64}
  exec.launch @combine(%parts, %p, %s, %latents) grid affine_map<(T, R) -> (T * 2)> writes [3] {run_below = 8 : i64}
    : memref<8x16x64xf32>, memref<?xi32>, memref<?xi32>, memref<?x2x16xf32>
  exec.launch @values(%latents, %uv, %y) grid affine_map<(T, R) -> ((T ceildiv 64) * 4)> writes [2]
    {run_below = 8 : i64} : memref<?x2x16xf32>, memref<2x2x16x32xbf16>, memref<?x2x64xf32>
  %x = exec.buffer : memref<?x64xf32>
  %router = exec.weight_ref @router : memref<1x1x64x32xf32>
  %logits = exec.buffer : memref<?x8xf32>
  %weights = exec.buffer : memref<?x2xf32>
  %chosen = exec.buffer : memref<?x2xi32>
  // CHECK-NEXT: exec.launch @scores(
  exec.launch @scores(%x, %router, %logits) grid affine_map<(T, R) -> (T ceildiv 64)> writes [2]
    : memref<?x64xf32>, memref<1x1x64x32xf32>, memref<?x8xf32>
  // CHECK-NEXT: exec.launch @route(
  exec.launch @route(%logits, %weights, %chosen) grid affine_map<(T, R) -> (T)> writes [1, 2]
    : memref<?x8xf32>, memref<?x2xf32>, memref<?x2xi32>
  %rows = exec.buffer {per_row} : memref<?x64xf32>
  %candidates = exec.buffer {per_row} : memref<?x2xf32>
  // CHECK-NEXT: exec.launch @gemm_f32_n8_k64_argmax_rows_and_argmax_c1_rows(
  // CHECK-SAME: grid #{{.*}} writes [2, 3, 5, 6]
  exec.launch @head(%rows, %router, %l, %candidates) grid affine_map<(T, R) -> (R ceildiv 64)> writes [2, 3]
    : memref<?x64xf32>, memref<1x1x64x32xf32>, memref<?x8xf32>, memref<?x2xf32>
  exec.launch @argmax(%candidates, %best) grid affine_map<(T, R) -> (R)> writes [1]
    : memref<?x2xf32>, memref<?xi32>
}

// The near miss: one of the two is left out of other steps than the other.
// CHECK-LABEL: exec.program @other_steps
exec.program @other_steps(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                          %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 100 {
  %parts = exec.buffer : memref<8x16x64xf32>
  %latents = exec.buffer : memref<?x2x16xf32>
  %uv = exec.weight_ref @uv : memref<2x2x16x32xbf16>
  %y = exec.buffer : memref<?x2x64xf32>
  // CHECK: exec.launch @combine(
  exec.launch @combine(%parts, %p, %s, %latents) grid affine_map<(T, R) -> (T * 2)> writes [3] {run_below = 8 : i64}
    : memref<8x16x64xf32>, memref<?xi32>, memref<?xi32>, memref<?x2x16xf32>
  // CHECK-NEXT: exec.launch @values(
  exec.launch @values(%latents, %uv, %y) grid affine_map<(T, R) -> ((T ceildiv 64) * 4)> writes [2]
    : memref<?x2x16xf32>, memref<2x2x16x32xbf16>, memref<?x2x64xf32>
}
