// RUN: moe-opt %s -split-input-file -moe-to-exec=max-tokens=64 | FileCheck %s

// Embedding, norm, linear and logits: weights keep their order, norm weights become f32 padded
// to 16, rows after gather_rows count R, and the last linear writes the logits.

// CHECK-DAG: #[[T:.+]] = affine_map<(d0, d1) -> (d0)>
// CHECK-DAG: #[[GEMM:.+]] = affine_map<(d0, d1) -> (d0 ceildiv 64)>
// CHECK-DAG: #[[R:.+]] = affine_map<(d0, d1) -> (d1)>
// CHECK-DAG: #[[GEMM_R:.+]] = affine_map<(d0, d1) -> ((d1 ceildiv 64) * 4)>
// CHECK: module attributes {moe.model = {layers = 0 : i64}}
// CHECK: exec.weight @model.embed_tokens ["model.embed_tokens.weight"] recipe [] : memref<100x24xbf16>
// CHECK: exec.weight @model.norm ["model.norm.weight"] recipe [#moe.cast<f32>, #moe.pad<32>] : memref<32xf32>
// CHECK: exec.weight @proj ["proj.weight"] recipe [#moe.pack_panels<32, 2>] : memref<1x1x24x32xbf16>
// The table again, as a GEMM reads it:
// CHECK: exec.weight @model.embed_tokens.2 ["model.embed_tokens.weight"] recipe [#moe.pack_panels<32, 2>] : memref<1x4x24x32xbf16>
// CHECK: exec.kernel @embed_bf16_d24 "embed" {out_stride = 24 : i64, table = "bf16", width = 24 : i64}
// CHECK: exec.kernel @rms_norm_d24 "rms_norm" {eps = 9.9999999999999995E-7 : f64, out_stride = 24 : i64, rows = "T", weight = true, width = 24 : i64, x_stride = 24 : i64}
// CHECK: exec.kernel @gemm_bf16_n24_k24_add "gemm" {batch = 1 : i64, codes = "int4", epilogue = "add", group = 0 : i64, group_scale = "f16", input = "f32", k = 24 : i64, n = 24 : i64, output = "f32", output_offset = 0 : i64, residual_stride = 24 : i64, routing = "none", rows = "T", scale_cols = 0 : i64, topk = 0 : i64, weight = "bf16", x_batch = 0 : i64, x_stride = 24 : i64, y_batch = 0 : i64, y_stride = 24 : i64}
// CHECK: exec.kernel @gather_rows_d24 "gather_rows" {out_stride = 24 : i64, width = 24 : i64, x_stride = 24 : i64}
// CHECK: exec.kernel @rms_norm_d24_rows "rms_norm" {{.*}} rows = "R"
// CHECK: exec.kernel @gemm_bf16_n100_k24_argmax_rows "gemm" {{.*}} rows = "R"
// CHECK: exec.kernel @argmax_c4_rows "argmax" {count = 4 : i64, rows = "R"}
// CHECK: exec.program @step(%[[TOK:.+]]: memref<?xi32>, %{{.+}}: memref<?xi32>, %{{.+}}: memref<?xi32>, %[[ROWS:.+]]: memref<?xi32>, %{{.+}}: memref<?x?xi32>, %[[LOGITS:.+]]: memref<?x100xf32>, %[[BEST:.+]]: memref<?xi32>) max_tokens 64 {
// CHECK-DAG: %[[X:.+]] = exec.buffer : memref<?x24xf32>
// CHECK-DAG: %[[TABLE:.+]] = exec.weight_ref @model.embed_tokens :
// CHECK: exec.launch @embed_bf16_d24(%[[TOK]], %[[TABLE]], %[[X]]) grid #[[T]] writes [2] {label = "moe.embed"}
// CHECK-DAG: %[[N:.+]] = exec.buffer : memref<?x24xf32>
// CHECK-DAG: %[[G:.+]] = exec.weight_ref @model.norm :
// CHECK: exec.launch @rms_norm_d24(%[[X]], %[[G]], %[[N]]) grid #[[T]] writes [2] {label = "layers.0.input_layernorm"}
// CHECK-DAG: %[[Y:.+]] = exec.buffer : memref<?x24xf32>
// CHECK-DAG: %[[W:.+]] = exec.weight_ref @proj :
// CHECK: exec.launch @gemm_bf16_n24_k24_add(%[[N]], %[[W]], %[[X]], %[[Y]]) grid #[[GEMM]] writes [3] {label = "layers.0.proj"}
// CHECK: %[[GATHERED:.+]] = exec.buffer {per_row} : memref<?x24xf32>
// CHECK: exec.launch @gather_rows_d24(%[[Y]], %[[ROWS]], %[[GATHERED]]) grid #[[R]] writes [2]
// CHECK: %[[NORMED:.+]] = exec.buffer {per_row} : memref<?x24xf32>
// The norm's weight is the same symbol as above.
// CHECK: exec.launch @rms_norm_d24_rows(%[[GATHERED]], %[[G]], %[[NORMED]]) grid #[[R]] writes [2]
// CHECK: %[[HEAD:.+]] = exec.weight_ref @model.embed_tokens.2 :
// CHECK: exec.launch @gemm_bf16_n100_k24_argmax_rows(%[[NORMED]], %[[HEAD]], %[[LOGITS]], %[[CANDIDATES:.+]]) grid #[[GEMM_R]] writes [2, 3]
// CHECK: exec.launch @argmax_c4_rows(%[[CANDIDATES]], %[[BEST]]) grid #[[R]] writes [1]
// CHECK-NOT: func.func
module attributes {moe.model = {layers = 0 : i64}} {
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x100xf32> {
  %table = moe.weight ["model.embed_tokens.weight"] : tensor<100x24xbf16>
  %g = moe.weight ["model.norm.weight"] : tensor<24xbf16>
  %w = moe.weight ["proj.weight"] : tensor<24x24xbf16>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x24xbf16> -> tensor<?x24xf32>
  %n = moe.rms_norm %x, %g eps 1.0e-6 : tensor<?x24xf32>, tensor<24xbf16> -> tensor<?x24xf32> loc("layers.0.input_layernorm")
  %y = moe.linear %n, %w add %x : tensor<?x24xf32> : tensor<?x24xf32>, tensor<24x24xbf16> -> tensor<?x24xf32> loc("layers.0.proj")
  %r = moe.gather_rows %y[%rows] : tensor<?x24xf32>, tensor<?xi32> -> tensor<?x24xf32>
  %h = moe.rms_norm %r, %g eps 1.0e-6 : tensor<?x24xf32>, tensor<24xbf16> -> tensor<?x24xf32>
  %logits = moe.linear %h, %table : tensor<?x24xf32>, tensor<100x24xbf16> -> tensor<?x100xf32>
  return %logits : tensor<?x100xf32>
}
}

// -----

// A norm without a weight has no argument for it, and no symbol in common with one that has.

// CHECK: exec.kernel @rms_norm_d24_plain "rms_norm" {{.*}} weight = false
// CHECK: exec.kernel @rms_norm_d24 "rms_norm" {{.*}} weight = true
// CHECK: exec.launch @rms_norm_d24_plain(%[[X:.+]], %[[N:.+]]) grid #{{.+}} writes [1]
// CHECK: exec.launch @rms_norm_d24(%[[N]], %{{.+}}, %{{.+}}) grid #{{.+}} writes [2]
module attributes {moe.model = {layers = 0 : i64}} {
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x100xf32> {
  %table = moe.weight ["model.embed_tokens.weight"] : tensor<100x24xbf16>
  %g = moe.weight ["model.norm.weight"] : tensor<24xbf16>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x24xbf16> -> tensor<?x24xf32>
  %n = moe.rms_norm %x eps 1.0e-6 : tensor<?x24xf32> -> tensor<?x24xf32>
  %h = moe.rms_norm %n, %g eps 1.0e-6 : tensor<?x24xf32>, tensor<24xbf16> -> tensor<?x24xf32>
  %r = moe.gather_rows %h[%rows] : tensor<?x24xf32>, tensor<?xi32> -> tensor<?x24xf32>
  %logits = moe.linear %r, %table : tensor<?x24xf32>, tensor<100x24xbf16> -> tensor<?x100xf32>
  return %logits : tensor<?x100xf32>
}
}

// -----

// Equal specs are one kernel, also for other weights; specs that a symbol cannot tell apart get
// a number, and so do two packings of one weight.

// CHECK: exec.kernel @gemm_f32_n8_k8 "gemm" {{.*}} x_stride = 8 : i64
// CHECK: exec.kernel @swiglu_d8 "elementwise" {a_stride = 8 : i64, b_stride = 8 : i64, out_stride = 8 : i64, rows = "T", swiglu = true, width = 8 : i64}
// CHECK: exec.kernel @add_d8 "elementwise" {a_stride = 8 : i64, b_stride = 8 : i64, out_stride = 8 : i64, rows = "T", swiglu = false, width = 8 : i64}
// CHECK: exec.kernel @gemm_f32_n8_k8_swiglu "gemm" {{.*}}epilogue = "swiglu"
// CHECK: exec.kernel @gemm_f32_n16_k8 "gemm"
// CHECK: exec.kernel @gemm_f32_n8_k8_add "gemm" {{.*}}residual_stride = 16 : i64{{.*}} x_stride = 16 : i64
// CHECK: exec.kernel @gemm_f32_n8_k8_2 "gemm" {{.*}} x_stride = 16 : i64
// CHECK: exec.program
// CHECK: exec.launch @gemm_f32_n8_k8(
// CHECK: exec.launch @gemm_f32_n8_k8(
// CHECK: exec.launch @swiglu_d8(%[[A:.+]], %[[B:.+]], %[[C:.+]]) grid
// CHECK: exec.launch @add_d8(%[[A]], %[[C]], %[[SUM:.+]]) grid
// CHECK: %[[GU:.+]] = exec.weight_ref @b.2 : memref<1x1x8x32xf32>
// CHECK: exec.launch @gemm_f32_n8_k8_swiglu(%[[SUM]], %[[GU]], %[[S:.+]]) grid
// CHECK: exec.launch @gemm_f32_n16_k8(%[[S]], %{{.+}}, %[[WIDE:.+]]) grid
// Parts of a split are views, and no launch.
// CHECK: %[[LOW:.+]] = exec.view %[[WIDE]] : memref<?x16xf32> to memref<?x8xf32, strided<[16, 1]>>
// CHECK: %[[HIGH:.+]] = exec.view %[[WIDE]] : memref<?x16xf32> to memref<?x8xf32, strided<[16, 1], offset: 8>>
// CHECK: exec.launch @gemm_f32_n8_k8_add(%[[HIGH]], %{{.+}}, %[[LOW]], %{{.+}}) grid
// CHECK: exec.launch @gemm_f32_n8_k8_2(%[[HIGH]],
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %wa = moe.weight ["a.weight"] : tensor<8x8xf32>
  %wb = moe.weight ["b.weight"] : tensor<8x8xf32>
  %wc = moe.weight ["c.weight"] : tensor<16x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  %a = moe.linear %x, %wa : tensor<?x8xf32>, tensor<8x8xf32> -> tensor<?x8xf32>
  %b = moe.linear %x, %wb : tensor<?x8xf32>, tensor<8x8xf32> -> tensor<?x8xf32>
  %c = moe.swiglu %a, %b : tensor<?x8xf32>
  %sum = moe.add %a, %c : tensor<?x8xf32>
  %s = moe.gate_up %sum, %wb, %wa : tensor<?x8xf32>, tensor<8x8xf32>, tensor<8x8xf32> -> tensor<?x8xf32>
  %wide = moe.linear %s, %wc : tensor<?x8xf32>, tensor<16x8xf32> -> tensor<?x16xf32>
  %low, %high = moe.split %wide : tensor<?x16xf32> -> tensor<?x8xf32>, tensor<?x8xf32>
  %d = moe.linear %high, %wa add %low : tensor<?x8xf32> : tensor<?x8xf32>, tensor<8x8xf32> -> tensor<?x8xf32>
  %e = moe.linear %high, %wa : tensor<?x8xf32>, tensor<8x8xf32> -> tensor<?x8xf32>
  %f = moe.add %d, %e : tensor<?x8xf32>
  %r = moe.gather_rows %f[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %r : tensor<?x8xf32>
}
