// RUN: split-file %s %t
// RUN: moe-opt %t/expanded.mlir -moe-to-exec | FileCheck %t/expanded.mlir
// RUN: moe-opt %t/both.mlir -moe-to-exec | FileCheck %t/both.mlir
// RUN: moe-opt %t/both.mlir -moe-store-cache=format=bf16 -moe-to-exec | FileCheck %t/both.mlir --check-prefix=BF16
// RUN: moe-opt %t/both.mlir -moe-store-cache=format=int8 -moe-to-exec | FileCheck %t/both.mlir --check-prefixes=CODES,INT8
// RUN: moe-opt %t/both.mlir -moe-store-cache=format=fp8 -moe-to-exec | FileCheck %t/both.mlir --check-prefixes=CODES,FP8

//--- expanded.mlir
// Always expanded: one launch after the append, and nothing of the absorbed form.

// CHECK-NOT: #moe.transpose
// CHECK: exec.weight @kv_b.keys ["kv_b.weight"] recipe [#moe.head_rows<2, 0, 8>, #moe.pack_panels<32, 2>] : memref<2x1x16x32xbf16>
// CHECK: exec.weight @kv_b.uv ["kv_b.weight"] recipe [#moe.head_rows<2, 8, 14>, #moe.pack_panels<32, 2>] : memref<2x1x16x32xbf16>
// CHECK-NOT: "mla_attention"
// CHECK: exec.kernel @mla_expanded_bf16_h2_k8_v6_c16_r4 "mla_expanded" {cache = "f32", codes = "none", heads = 2 : i64, latent = 16 : i64, nope = 8 : i64, out_head = 6 : i64, out_stride = 12 : i64, output = "f32", output_offset = 0 : i64, q_head = 12 : i64, q_stride = 24 : i64, rope = 4 : i64, rope_head = 4 : i64, rope_stride = 8 : i64, rounded_head = 0 : i64, rounded_stride = 0 : i64, run_from = 1 : i64, scale = 2.500000e-01 : f64, value = 6 : i64, weight = "bf16", width = 32 : i64}
// CHECK: exec.launch @cache_append
// CHECK: %[[ROPE:.+]] = exec.buffer : memref<?x2x4xf32>
// CHECK: exec.launch @rope_h2_d4(%{{.+}}, %{{.+}}, %[[ROPE]])
// CHECK: %[[OUT:.+]] = exec.buffer : memref<?x2x6xf32>
// CHECK: exec.launch @mla_expanded_bf16_h2_k8_v6_c16_r4(%{{.+}}, %[[ROPE]], %{{.+}}, %[[OUT]]) grid #{{.+}} writes [8] {label = "attention.expanded"}
#rope = #moe.rope<factor = 1.25, inv_freq = [1.0, 0.1]>
moe.cache @kv.0 width 20
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x12xf32> {
  %table = moe.weight ["table"] : tensor<100x12xbf16>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x12xbf16> -> tensor<?x12xf32>
  %wq = moe.weight ["q"] : tensor<24x12xbf16>
  %wkv = moe.weight ["kv"] : tensor<20x12xbf16>
  %q = moe.linear %x, %wq : tensor<?x12xf32>, tensor<24x12xbf16> -> tensor<?x24xf32>
  %q3 = moe.reshape %q : tensor<?x24xf32> -> tensor<?x2x12xf32>
  %qn, %qr = moe.split %q3 : tensor<?x2x12xf32> -> tensor<?x2x8xf32>, tensor<?x2x4xf32>
  %qr1 = moe.rope %qr at %positions by #rope : tensor<?x2x4xf32>, tensor<?xi32> -> tensor<?x2x4xf32>
  %kv = moe.linear %x, %wkv : tensor<?x12xf32>, tensor<20x12xbf16> -> tensor<?x20xf32>
  %c, %kr = moe.split %kv : tensor<?x20xf32> -> tensor<?x16xf32>, tensor<?x4xf32>
  %kr1 = moe.rope %kr at %positions by #rope : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32>
  %uk = moe.weight ["kv_b.weight"] recipe [#moe.head_rows<2, 0, 8>] : tensor<2x8x16xbf16>
  %uv = moe.weight ["kv_b.weight"] recipe [#moe.head_rows<2, 8, 14>] : tensor<2x6x16xbf16>
  %o = moe.mla_attention @kv.0 query(%qn, %qr1) entry(%c, %kr1) up(%uk, %uv) at(%positions, %slots) scale 0.25 expanded_from 1
    : (tensor<?x2x8xf32>, tensor<?x2x4xf32>, tensor<?x16xf32>, tensor<?x4xf32>, tensor<2x8x16xbf16>, tensor<2x6x16xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x6xf32> loc("attention")
  %x1 = moe.reshape %o : tensor<?x2x6xf32> -> tensor<?x12xf32>
  %r = moe.gather_rows %x1[%rows] : tensor<?x12xf32>, tensor<?xi32> -> tensor<?x12xf32>
  return %r : tensor<?x12xf32>
}

//--- both.mlir
// Both forms share the rotated query and the result, and the tokens by the length of their runs. The expanded form
// comes last, as the projection after the absorbed one writes all rows.

// BF16: exec.cache @kv.0 width 32 of bf16
// BF16: exec.kernel @cache_append_c16_r4_bf16 "cache_append" {cache = "bf16", codes = "none"
// BF16: exec.kernel @mla_attention_h2_c16_r4_bf16 "mla_attention" {cache = "bf16", codes = "none"
// BF16: exec.kernel @mla_expanded_bf16_h2_k8_v6_c16_r4_bf16 "mla_expanded" {cache = "bf16", codes = "none"
// BF16: exec.cache_ref @kv.0 : memref<?x64x32xbf16>

// 16 codes, one scale, 4 elements of bf16: 28 bytes. What is read has 20 elements, as in other caches.
// INT8: exec.cache @kv.0 width 32 of i8 codes "int8"
// FP8: exec.cache @kv.0 width 32 of i8 codes "fp8"
// INT8: exec.kernel @cache_append_c16_r4_int8 "cache_append" {cache = "bf16", codes = "int8", latent = 16 : i64, latent_stride = 20 : i64, rope = 4 : i64, rope_stride = 4 : i64, width = 32 : i64}
// FP8: exec.kernel @mla_attention_h2_c16_r4_fp8 "mla_attention" {cache = "bf16", codes = "fp8"
// FP8: exec.kernel @mla_expanded_bf16_h2_k8_v6_c16_r4_fp8 "mla_expanded" {cache = "bf16", codes = "fp8"
// CODES: exec.cache_ref @kv.0 : memref<?x64x32xi8>

// CHECK: exec.kernel @mla_attention_h2_c16_r4 "mla_attention" {{{.*}}run_below = 64 : i64{{.*}}}
// CHECK: exec.kernel @mla_expanded_bf16_h2_k8_v6_c16_r4 "mla_expanded" {{{.*}}rope_head = 20 : i64, rope_stride = 40 : i64, {{.*}}run_from = 64 : i64{{.*}}}
// CHECK: exec.launch @cache_append{{.*}} {label = "attention.append"}
// CHECK: %[[QUERY:.+]] = exec.buffer : memref<?x2x20xf32>
// CHECK: %[[ROPE:.+]] = exec.view %[[QUERY]] : memref<?x2x20xf32> to memref<?x2x4xf32, strided<[40, 20, 1], offset: 16>>
// CHECK: exec.launch @rope_h2_d4(%{{.+}}, %{{.+}}, %[[ROPE]]) grid #{{.+}} writes [2] {label = "moe.rope"}
// CHECK: %[[OUT:.+]] = exec.buffer : memref<?x2x6xf32>
// CHECK: exec.launch @gemm_bf16_n16_k8_h2({{.*}} {label = "attention.absorb", run_below = 64 : i64}
// CHECK: exec.launch @mla_attention_h2_c16_r4({{.*}} {label = "attention", run_below = 64 : i64}
// CHECK: exec.launch @gemm_bf16_n6_k16_h2(%{{.+}}, %{{.+}}, %[[OUT]]) grid #{{.+}} writes [2] {label = "attention.expand", run_below = 64 : i64}
// CHECK: exec.launch @mla_expanded_bf16_h2_k8_v6_c16_r4(%{{.+}}, %[[ROPE]], %{{.+}}, %[[OUT]]) grid #{{.+}} writes [8] {label = "attention.expanded", run_from = 64 : i64}
#rope = #moe.rope<factor = 1.25, inv_freq = [1.0, 0.1]>
moe.cache @kv.0 width 20
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x12xf32> {
  %table = moe.weight ["table"] : tensor<100x12xbf16>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x12xbf16> -> tensor<?x12xf32>
  %wq = moe.weight ["q"] : tensor<24x12xbf16>
  %wkv = moe.weight ["kv"] : tensor<20x12xbf16>
  %q = moe.linear %x, %wq : tensor<?x12xf32>, tensor<24x12xbf16> -> tensor<?x24xf32>
  %q3 = moe.reshape %q : tensor<?x24xf32> -> tensor<?x2x12xf32>
  %qn, %qr = moe.split %q3 : tensor<?x2x12xf32> -> tensor<?x2x8xf32>, tensor<?x2x4xf32>
  %qr1 = moe.rope %qr at %positions by #rope : tensor<?x2x4xf32>, tensor<?xi32> -> tensor<?x2x4xf32>
  %kv = moe.linear %x, %wkv : tensor<?x12xf32>, tensor<20x12xbf16> -> tensor<?x20xf32>
  %c, %kr = moe.split %kv : tensor<?x20xf32> -> tensor<?x16xf32>, tensor<?x4xf32>
  %kr1 = moe.rope %kr at %positions by #rope : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32>
  %uk = moe.weight ["kv_b.weight"] recipe [#moe.head_rows<2, 0, 8>] : tensor<2x8x16xbf16>
  %uv = moe.weight ["kv_b.weight"] recipe [#moe.head_rows<2, 8, 14>] : tensor<2x6x16xbf16>
  %o = moe.mla_attention @kv.0 query(%qn, %qr1) entry(%c, %kr1) up(%uk, %uv) at(%positions, %slots) scale 0.25 expanded_from 64
    : (tensor<?x2x8xf32>, tensor<?x2x4xf32>, tensor<?x16xf32>, tensor<?x4xf32>, tensor<2x8x16xbf16>, tensor<2x6x16xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x6xf32> loc("attention")
  %x1 = moe.reshape %o : tensor<?x2x6xf32> -> tensor<?x12xf32>
  %r = moe.gather_rows %x1[%rows] : tensor<?x12xf32>, tensor<?xi32> -> tensor<?x12xf32>
  return %r : tensor<?x12xf32>
}
