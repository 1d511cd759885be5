// RUN: moe-opt %s -moe-to-exec | FileCheck %s

// Two layers of latent attention: angles are computed once, the absorbed query and the rotated
// one meet in one buffer without a copy, and both halves of kv_b have their own packing.

// CHECK: exec.cache @kv.0 width 32 of f32
// CHECK: exec.cache @kv.1 width 32 of f32
// CHECK: exec.weight @layers.0.kv_b.uk ["layers.0.kv_b.weight"] recipe [#moe.head_rows<2, 0, 8>, #moe.transpose, #moe.pack_panels<32, 2>] : memref<2x1x8x32xbf16>
// CHECK: exec.weight @layers.0.kv_b.uv ["layers.0.kv_b.weight"] recipe [#moe.head_rows<2, 8, 14>, #moe.pack_panels<32, 2>] : memref<2x1x16x32xbf16>
// FP8 is widened where heads are cut out of its blocks.
// CHECK: exec.weight @layers.1.kv_b.uk ["layers.1.kv_b.weight", "layers.1.kv_b.weight_scale_inv"] recipe [#moe.dequant<fp8 128x128, bf16>, #moe.head_rows<2, 0, 8>, #moe.transpose, #moe.pack_panels<32, 2>] : memref<2x1x8x32xbf16>
// CHECK: exec.weight @layers.1.kv_b.uv
// CHECK: exec.kernel @rope_angles_d4 "rope_angles" {factor = 1.250000e+00 : f64, inv_freq = array<f32: 1.000000e+00, 1.000000e-01>}
// CHECK: exec.kernel @rope_h1_d4 "rope" {dim = 4 : i64, heads = 1 : i64, out_head = 0 : i64, out_stride = 4 : i64, x_head = 0 : i64, x_stride = 20 : i64}
// CHECK: exec.kernel @cache_append_c16_r4 "cache_append" {cache = "f32", codes = "none", latent = 16 : i64, latent_stride = 20 : i64, rope = 4 : i64, rope_stride = 4 : i64, width = 32 : i64}
// CHECK: exec.kernel @rope_h2_d4 "rope" {dim = 4 : i64, heads = 2 : i64, out_head = 20 : i64, out_stride = 40 : i64, x_head = 12 : i64, x_stride = 24 : i64}
// CHECK: exec.kernel @gemm_bf16_n16_k8_h2 "gemm" {{.*}}x_batch = 12 : i64, x_stride = 24 : i64, y_batch = 20 : i64, y_stride = 40 : i64}
// CHECK: exec.kernel @mla_attention_h2_c16_r4 "mla_attention" {cache = "f32", codes = "none", heads = 2 : i64, latent = 16 : i64, out_head = 16 : i64, out_stride = 32 : i64, q_head = 20 : i64, q_stride = 40 : i64, rope = 4 : i64, run_below = 0 : i64, scale = 2.500000e-01 : f64, width = 32 : i64}
// CHECK: exec.kernel @gemm_bf16_n6_k16_h2 "gemm" {{.*}}x_batch = 16 : i64, x_stride = 32 : i64, y_batch = 6 : i64, y_stride = 12 : i64}
// CHECK: exec.program @step(%{{.+}}: memref<?xi32>, %[[POS:.+]]: memref<?xi32>, %[[SLOTS:.+]]: memref<?xi32>, %{{.+}}: memref<?xi32>, %[[PAGES:.+]]: memref<?x?xi32>, %{{.+}}) max_tokens 512
// CHECK: %[[Q3:.+]] = exec.view %{{.+}} : memref<?x24xf32> to memref<?x2x12xf32>
// CHECK: %[[QN:.+]] = exec.view %[[Q3]] : memref<?x2x12xf32> to memref<?x2x8xf32, strided<[24, 12, 1]>>
// CHECK: %[[QR:.+]] = exec.view %[[Q3]] : memref<?x2x12xf32> to memref<?x2x4xf32, strided<[24, 12, 1], offset: 8>>
// CHECK: %[[LATENT:.+]] = exec.view %{{.+}} : memref<?x20xf32> to memref<?x16xf32, strided<[20, 1]>>
// CHECK: %[[KR:.+]] = exec.view %{{.+}} : memref<?x20xf32> to memref<?x4xf32, strided<[20, 1], offset: 16>>
// CHECK: %[[KEY:.+]] = exec.buffer : memref<?x4xf32>
// CHECK: %[[ANGLES:.+]] = exec.buffer : memref<?x4xf32>
// CHECK: exec.launch @rope_angles_d4(%[[POS]], %[[ANGLES]]) grid #{{.+}} writes [1] {label = "layers.0.rope_k.angles"}
// CHECK: exec.launch @rope_h1_d4(%[[KR]], %[[ANGLES]], %[[KEY]]) grid #{{.+}} writes [2] {label = "layers.0.rope_k"}
// CHECK: %[[CACHE:.+]] = exec.cache_ref @kv.0 : memref<?x64x32xf32>
// CHECK: exec.launch @cache_append_c16_r4(%[[LATENT]], %[[KEY]], %[[POS]], %[[SLOTS]], %[[PAGES]], %[[CACHE]]) grid #{{.+}} writes [5] {label = "layers.0.attention.append"}
// CHECK: %[[QUERY:.+]] = exec.buffer : memref<?x2x20xf32>
// CHECK: %[[TAIL:.+]] = exec.view %[[QUERY]] : memref<?x2x20xf32> to memref<?x2x4xf32, strided<[40, 20, 1], offset: 16>>
// CHECK: exec.launch @rope_h2_d4(%[[QR]], %[[ANGLES]], %[[TAIL]]) grid #{{.+}} writes [2] {label = "layers.0.rope_q"}
// CHECK: %[[OUT:.+]] = exec.buffer : memref<?x2x6xf32>
// CHECK: %[[HEAD:.+]] = exec.view %[[QUERY]] : memref<?x2x20xf32> to memref<?x2x16xf32, strided<[40, 20, 1]>>
// CHECK: %[[UK:.+]] = exec.weight_ref @layers.0.kv_b.uk
// CHECK: exec.launch @gemm_bf16_n16_k8_h2(%[[QN]], %[[UK]], %[[HEAD]]) grid #{{.+}} writes [2] {label = "layers.0.attention.absorb"}
// CHECK: %[[MIXED:.+]] = exec.buffer : memref<?x2x16xf32>
// CHECK: %[[PARTS:.+]] = exec.buffer : memref<8x16x64xf32>
// CHECK: exec.launch @mla_attention_h2_c16_r4(%[[QUERY]], %[[POS]], %[[SLOTS]], %[[PAGES]], %[[CACHE]], %[[PARTS]], %[[MIXED]]) grid #{{.+}} writes [5, 6] {label = "layers.0.attention"}
// CHECK: exec.launch @mla_combine_h2_c16(%[[PARTS]], %[[POS]], %[[SLOTS]], %[[MIXED]]) grid #{{.+}} writes [3] {label = "layers.0.attention.combine"}
// CHECK: %[[UV:.+]] = exec.weight_ref @layers.0.kv_b.uv
// CHECK: exec.launch @gemm_bf16_n6_k16_h2(%[[MIXED]], %[[UV]], %[[OUT]]) grid #{{.+}} writes [2] {label = "layers.0.attention.expand"}
// CHECK: exec.view %[[OUT]] : memref<?x2x6xf32> to memref<?x12xf32>
// The second layer uses the same angles and kernels.
// CHECK-NOT: @rope_angles
// CHECK: exec.launch @rope_h1_d4(%{{.+}}, %[[ANGLES]], %{{.+}}) grid
// CHECK: exec.cache_ref @kv.1
// CHECK: exec.launch @rope_h2_d4(%{{.+}}, %[[ANGLES]], %{{.+}}) grid
// CHECK: exec.launch @mla_attention_h2_c16_r4(

#rope = #moe.rope<factor = 1.25, inv_freq = [1.0, 0.1]>
moe.cache @kv.0 width 20
moe.cache @kv.1 width 20
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x12xf32> {
  %table = moe.weight ["table"] : tensor<100x12xbf16>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x12xbf16> -> tensor<?x12xf32>
  %wq = moe.weight ["q"] : tensor<24x12xbf16>
  %wkv = moe.weight ["kv"] : tensor<20x12xbf16>

  %q = moe.linear %x, %wq : tensor<?x12xf32>, tensor<24x12xbf16> -> tensor<?x24xf32>
  %q3 = moe.reshape %q : tensor<?x24xf32> -> tensor<?x2x12xf32>
  %qn, %qr = moe.split %q3 : tensor<?x2x12xf32> -> tensor<?x2x8xf32>, tensor<?x2x4xf32>
  %qr1 = moe.rope %qr at %positions by #rope : tensor<?x2x4xf32>, tensor<?xi32> -> tensor<?x2x4xf32> loc("layers.0.rope_q")
  %kv = moe.linear %x, %wkv : tensor<?x12xf32>, tensor<20x12xbf16> -> tensor<?x20xf32>
  %c, %kr = moe.split %kv : tensor<?x20xf32> -> tensor<?x16xf32>, tensor<?x4xf32>
  %kr1 = moe.rope %kr at %positions by #rope : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32> loc("layers.0.rope_k")
  %uk = moe.weight ["layers.0.kv_b.weight"] recipe [#moe.head_rows<2, 0, 8>] : tensor<2x8x16xbf16>
  %uv = moe.weight ["layers.0.kv_b.weight"] recipe [#moe.head_rows<2, 8, 14>] : tensor<2x6x16xbf16>
  %o = moe.mla_attention @kv.0 query(%qn, %qr1) entry(%c, %kr1) up(%uk, %uv) at(%positions, %slots) scale 0.25
    : (tensor<?x2x8xf32>, tensor<?x2x4xf32>, tensor<?x16xf32>, tensor<?x4xf32>, tensor<2x8x16xbf16>, tensor<2x6x16xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x6xf32> loc("layers.0.attention")
  %x1 = moe.reshape %o : tensor<?x2x6xf32> -> tensor<?x12xf32>

  %q_1 = moe.linear %x1, %wq : tensor<?x12xf32>, tensor<24x12xbf16> -> tensor<?x24xf32>
  %q3_1 = moe.reshape %q_1 : tensor<?x24xf32> -> tensor<?x2x12xf32>
  %qn_1, %qr_1 = moe.split %q3_1 : tensor<?x2x12xf32> -> tensor<?x2x8xf32>, tensor<?x2x4xf32>
  %qr1_1 = moe.rope %qr_1 at %positions by #rope : tensor<?x2x4xf32>, tensor<?xi32> -> tensor<?x2x4xf32>
  %kv_1 = moe.linear %x1, %wkv : tensor<?x12xf32>, tensor<20x12xbf16> -> tensor<?x20xf32>
  %c_1, %kr_1 = moe.split %kv_1 : tensor<?x20xf32> -> tensor<?x16xf32>, tensor<?x4xf32>
  %kr1_1 = moe.rope %kr_1 at %positions by #rope : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32>
  %uk_1 = moe.weight ["layers.1.kv_b.weight", "layers.1.kv_b.weight_scale_inv"] recipe [#moe.dequant<fp8 128x128, bf16>, #moe.head_rows<2, 0, 8>] : tensor<2x8x16xbf16>
  %uv_1 = moe.weight ["layers.1.kv_b.weight", "layers.1.kv_b.weight_scale_inv"] recipe [#moe.dequant<fp8 128x128, bf16>, #moe.head_rows<2, 8, 14>] : tensor<2x6x16xbf16>
  %o_1 = moe.mla_attention @kv.1 query(%qn_1, %qr1_1) entry(%c_1, %kr1_1) up(%uk_1, %uv_1) at(%positions, %slots) scale 0.25
    : (tensor<?x2x8xf32>, tensor<?x2x4xf32>, tensor<?x16xf32>, tensor<?x4xf32>, tensor<2x8x16xbf16>, tensor<2x6x16xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x6xf32>
  %x2 = moe.reshape %o_1 : tensor<?x2x6xf32> -> tensor<?x12xf32>
  %r = moe.gather_rows %x2[%rows] : tensor<?x12xf32>, tensor<?xi32> -> tensor<?x12xf32>
  return %r : tensor<?x12xf32>
}
