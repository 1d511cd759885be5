// RUN: moe-opt %s -exec-fuse-rounding -split-input-file | FileCheck %s
// RUN: moe-opt %s -exec-fuse-rounding -split-input-file -o %t
// RUN: moe-opt %t -exec-fuse-rounding -split-input-file | diff %t -

// CHECK-NOT: quantize_rows
// CHECK: exec.kernel @gemm_bf16_n64_k32_swiglu_to8 "gemm" {{.*}}output = "u8", output_offset = 8 : i64{{.*}}y_stride = 80 : i64
// CHECK-NOT: quantize_rows
exec.kernel @gate_up "gemm" {batch = 1 : i64, codes = "int4", epilogue = "swiglu", group = 0 : i64, group_scale = "f16", input = "f32", k = 32 : i64, n = 64 : i64, output = "f32", output_offset = 0 : i64, residual_stride = 0 : i64, routing = "none", rows = "T", scale_cols = 0 : i64, topk = 0 : i64, weight = "bf16", x_batch = 0 : i64, x_stride = 32 : i64, y_batch = 0 : i64, y_stride = 64 : i64}
exec.kernel @round "quantize_rows" {offset = 8 : i64, out_stride = 80 : i64, rows = "T", rows_per_token = 1 : i64, scale_cols = 32 : i64, width = 64 : i64, x_stride = 64 : i64}
exec.weight @w ["w"] recipe [] : memref<4x32x32xbf16>

// CHECK-LABEL: exec.program @stores_codes
exec.program @stores_codes(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                           %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x32xf32>
  %w = exec.weight_ref @w : memref<4x32x32xbf16>
  %y = exec.buffer : memref<?x64xf32>
  exec.launch @gate_up(%x, %w, %y) grid affine_map<(T, R) -> ((T ceildiv 64) * 4)> writes [2] {label = "mlp"}
    : memref<?x32xf32>, memref<4x32x32xbf16>, memref<?x64xf32>
  %q = exec.buffer : memref<?x80xi8>
  // CHECK: exec.launch @gemm_bf16_n64_k32_swiglu_to8(%[[X:.*]], %[[W:.*]], %[[Q:[^)]*]]) grid
  // CHECK-SAME: writes [2] {label = "mlp + round"} : memref<?x32xf32>, memref<4x32x32xbf16>, memref<?x80xi8>
  // CHECK-NOT: exec.launch
  exec.launch @round(%y, %q) grid affine_map<(T, R) -> (T)> writes [1] {label = "round"}
    : memref<?x64xf32>, memref<?x80xi8>
  // CHECK: }
}

// -----

// Heads, in both forms of attention, each of which leaves tokens to the other.
exec.kernel @expand "gemm" {batch = 2 : i64, codes = "int4", epilogue = "none", group = 0 : i64, group_scale = "f16", input = "f32", k = 16 : i64, n = 32 : i64, output = "f32", output_offset = 0 : i64, residual_stride = 0 : i64, routing = "none", rows = "T", scale_cols = 0 : i64, topk = 0 : i64, weight = "bf16", x_batch = 16 : i64, x_stride = 32 : i64, y_batch = 32 : i64, y_stride = 64 : i64}
exec.kernel @expanded "mla_expanded" {cache = "f32", codes = "none", heads = 2 : i64, latent = 16 : i64, nope = 16 : i64, out_head = 32 : i64, out_stride = 64 : i64, output = "f32", output_offset = 0 : i64, q_head = 16 : i64, q_stride = 32 : i64, rope = 0 : i64, rope_head = 0 : i64, rope_stride = 0 : i64, rounded_head = 0 : i64, rounded_stride = 0 : i64, run_from = 8 : i64, scale = 1.0, value = 32 : i64, weight = "bf16", width = 16 : i64}
exec.kernel @cast "cast_rows" {out_stride = 66 : i64, rows = "T", rows_per_token = 1 : i64, to = "bf16", width = 64 : i64, x_stride = 64 : i64}
exec.cache @kv width 16 of f32
exec.weight @uk ["uk"] recipe [] : memref<2x1x16x32xbf16>
exec.weight @uv ["uv"] recipe [] : memref<2x1x16x32xbf16>

// CHECK-LABEL: exec.program @both_forms
exec.program @both_forms(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                         %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 16 {
  %q = exec.buffer : memref<?x2x16xf32>
  %kv = exec.cache_ref @kv : memref<?x64x16xf32>
  %uk = exec.weight_ref @uk : memref<2x1x16x32xbf16>
  %uv = exec.weight_ref @uv : memref<2x1x16x32xbf16>
  %y = exec.buffer : memref<?x64xf32>
  %heads = exec.view %y : memref<?x64xf32> to memref<?x2x32xf32>
  // CHECK: %[[C:.*]] = exec.view {{.*}} to memref<?x64xbf16, strided<[66, 1]>>
  // CHECK: exec.launch @gemm_bf16_n32_k16_h2_to16({{.*}}, {{.*}}, %[[C]]) {{.*}}run_below = 8
  exec.launch @expand(%q, %uv, %heads) grid affine_map<(T, R) -> ((T ceildiv 64) * 2)> writes [2] {run_below = 8 : i64}
    : memref<?x2x16xf32>, memref<2x1x16x32xbf16>, memref<?x2x32xf32>
  // CHECK: exec.launch @mla_expanded_bf16_h2_k16_v32_c16_r0_to16({{.*}}, %[[C]]) {{.*}} writes [8, 9] {run_from = 8
  exec.launch @expanded(%q, %q, %p, %s, %pt, %kv, %uk, %uv, %heads) grid affine_map<(T, R) -> ((T ceildiv 512) * 2)>
    writes [8] {run_from = 8 : i64}
    : memref<?x2x16xf32>, memref<?x2x16xf32>, memref<?xi32>, memref<?xi32>, memref<?x?xi32>, memref<?x64x16xf32>,
      memref<2x1x16x32xbf16>, memref<2x1x16x32xbf16>, memref<?x2x32xf32>
  // CHECK-NOT: exec.launch
  %rows = exec.buffer : memref<?x66xbf16>
  %c = exec.view %rows : memref<?x66xbf16> to memref<?x64xbf16, strided<[66, 1]>>
  exec.launch @cast(%y, %c) grid affine_map<(T, R) -> (T)> writes [1]
    : memref<?x64xf32>, memref<?x64xbf16, strided<[66, 1]>>
  // CHECK: }
}

// -----

// The near misses: a result that is read as it is, too; and one scale for the whole row, which no task knows.
exec.kernel @linear "gemm" {batch = 1 : i64, codes = "int4", epilogue = "none", group = 0 : i64, group_scale = "f16", input = "f32", k = 32 : i64, n = 64 : i64, output = "f32", output_offset = 0 : i64, residual_stride = 0 : i64, routing = "none", rows = "T", scale_cols = 0 : i64, topk = 0 : i64, weight = "bf16", x_batch = 0 : i64, x_stride = 32 : i64, y_batch = 0 : i64, y_stride = 64 : i64}
exec.kernel @round "quantize_rows" {offset = 8 : i64, out_stride = 80 : i64, rows = "T", rows_per_token = 1 : i64, scale_cols = 32 : i64, width = 64 : i64, x_stride = 64 : i64}
exec.kernel @round_rows "quantize_rows" {offset = 8 : i64, out_stride = 80 : i64, rows = "T", rows_per_token = 1 : i64, scale_cols = 64 : i64, width = 64 : i64, x_stride = 64 : i64}
exec.kernel @add "elementwise" {a_stride = 64 : i64, b_stride = 64 : i64, out_stride = 64 : i64, rows = "T",
                                swiglu = false, width = 64 : i64}
exec.weight @w ["w"] recipe [] : memref<2x32x32xbf16>

// CHECK-LABEL: exec.program @read_twice
exec.program @read_twice(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                         %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x32xf32>
  %w = exec.weight_ref @w : memref<2x32x32xbf16>
  %y = exec.buffer : memref<?x64xf32>
  %q = exec.buffer : memref<?x80xi8>
  %sum = exec.buffer : memref<?x64xf32>
  // CHECK: exec.launch @linear
  // CHECK: exec.launch @round
  exec.launch @linear(%x, %w, %y) grid affine_map<(T, R) -> ((T ceildiv 64) * 2)> writes [2]
    : memref<?x32xf32>, memref<2x32x32xbf16>, memref<?x64xf32>
  exec.launch @round(%y, %q) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>, memref<?x80xi8>
  exec.launch @add(%y, %y, %sum) grid affine_map<(T, R) -> (T)> writes [2]
    : memref<?x64xf32>, memref<?x64xf32>, memref<?x64xf32>
}

// CHECK-LABEL: exec.program @scale_of_row
exec.program @scale_of_row(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                           %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x32xf32>
  %w = exec.weight_ref @w : memref<2x32x32xbf16>
  %y = exec.buffer : memref<?x64xf32>
  %q = exec.buffer : memref<?x80xi8>
  // CHECK: exec.launch @linear
  // CHECK: exec.launch @round_rows
  exec.launch @linear(%x, %w, %y) grid affine_map<(T, R) -> ((T ceildiv 64) * 2)> writes [2]
    : memref<?x32xf32>, memref<2x32x32xbf16>, memref<?x64xf32>
  exec.launch @round_rows(%y, %q) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>, memref<?x80xi8>
}
