// RUN: moe-opt %s -moe-to-exec | FileCheck %s

// Rows rounded to int8 go to kernels of int4 and int8 weights as codes, once for all that add the same to codes (1 where
// there are zero points); other readers get what the codes stand for, from the first that needs it.

// CHECK-DAG: exec.kernel @gemm_int4_g32_n64_k64_x8 "gemm" {{.*}}input = "u8"{{.*}}x_stride = 80 : i64
// CHECK-DAG: exec.kernel @gemm_int8_g64_n64_k64_x8_add "gemm" {{.*}}input = "u8"{{.*}}x_stride = 80 : i64
// CHECK-DAG: exec.kernel @gemm_int4_g32_n64_k64_e4_x8_gather_swiglu "gemm"
// CHECK-DAG: exec.kernel @gemm_int4_g64_n64_k64_e4_x8_scatter "gemm"
// CHECK-DAG: exec.kernel @quantize_rows_d64_plus8 "quantize_rows" {offset = 8 : i64, out_stride = 80 : i64, rows = "T", rows_per_token = 1 : i64, scale_cols = 32 : i64, width = 64 : i64, x_stride = 64 : i64}
// CHECK-DAG: exec.kernel @[[ROW:quantize_rows_d64_plus8_[0-9]]] "quantize_rows" {{.*}}rows_per_token = 2 : i64, scale_cols = 64 : i64
// CHECK-LABEL: exec.program
// CHECK: exec.launch @quantize_rows_d64_plus8(%{{.+}}, %[[CODES:.+]]) {{.*}}memref<?x80xi8>
// CHECK: exec.launch @gemm_int4_g32_n64_k64_x8(%[[CODES]],
// CHECK: exec.launch @quantize_rows_d64_plus128(%{{.+}}, %[[OTHERS:.+]])
// CHECK: exec.launch @gemm_int8_g64_n64_k64_x8_add(%[[OTHERS]],
// CHECK: exec.launch @fake_quantize_int8_d64(%{{.+}}, %[[VALUES:.+]])
// CHECK: exec.launch @gemm_bf16_n4_k64(%[[VALUES]],
// CHECK: exec.launch @quantize_rows_d64_plus1(%{{.+}}, %[[ZEROS:.+]])
// CHECK: exec.launch @gemm_int4_zero_g32_n64_k64_x8_add(%[[ZEROS]],
// CHECK: exec.launch @gemm_int4_g32_n64_k64_e4_x8_gather_swiglu(%[[CODES]], %{{[^,]+}}, %[[HIDDEN:[^,]+]],
// CHECK: exec.launch @[[ROW]](%[[HIDDEN]], %[[INNER:.+]])
// CHECK: exec.launch @gemm_int4_g64_n64_k64_e4_x8_scatter(%[[INNER]],
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x64xf32> {
  %table = moe.weight ["table"] : tensor<100x64xf32>
  %a = moe.weight ["a"] recipe [#moe.quantize<int4, group = 32, scale = f16>] : tensor<64x64xf32>
  %b = moe.weight ["b"] recipe [#moe.quantize<int8, group = 64, scale = f32>] : tensor<64x64xf32>
  %c = moe.weight ["c"] recipe [#moe.quantize<int4_zero, group = 32, scale = f16>] : tensor<64x64xf32>
  %wr = moe.weight ["r"] : tensor<4x64xbf16>
  %G = moe.weight ["g.{e}"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 32, scale = f16>] : tensor<4x64x64xf32>
  %U = moe.weight ["u.{e}"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 32, scale = f16>] : tensor<4x64x64xf32>
  %D = moe.weight ["d.{e}"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 64, scale = f16>] : tensor<4x64x64xf32>
  %t = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x64xf32> -> tensor<?x64xf32>
  %x = moe.fake_quantize %t : tensor<?x64xf32> to #moe.quantize<int8, group = 32, scale = f32>
  %ya = moe.linear %x, %a : tensor<?x64xf32>, tensor<64x64xf32> -> tensor<?x64xf32>
  %yb = moe.linear %x, %b add %ya : tensor<?x64xf32> : tensor<?x64xf32>, tensor<64x64xf32> -> tensor<?x64xf32>
  %l = moe.linear %x, %wr : tensor<?x64xf32>, tensor<4x64xbf16> -> tensor<?x4xf32>
  %yc = moe.linear %x, %c add %yb : tensor<?x64xf32> : tensor<?x64xf32>, tensor<64x64xf32> -> tensor<?x64xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %y = moe.experts %x route(%w, %e) ffn(%G, %U, %D) add %yc : tensor<?x64xf32> {activations = #moe.quantize<int8, group = 64, scale = f32>}
    : tensor<?x64xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x64x64xf32>, tensor<4x64x64xf32>, tensor<4x64x64xf32> -> tensor<?x64xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x64xf32>, tensor<?xi32> -> tensor<?x64xf32>
  return %r : tensor<?x64xf32>
}
