// One layer from the form an importer gives to launches on a memory plan, as `moec compile` does it.
// RUN: moe-opt %S/moe-optimize.mlir -moe-optimize -moec-lower=max-tokens=64 | FileCheck %s
// RUN: moe-opt %S/moe-optimize.mlir -moe-optimize -moec-lower=max-tokens=64 | moe-opt -o /dev/null

// CHECK: exec.cache @kv.0 width 48 of f32
// CHECK-NOT: func.func
// CHECK: exec.program @step({{.*}}) max_tokens 64 attributes {arena_bytes = {{[0-9]+}} : i64} {
// CHECK: exec.buffer {offset = {{[0-9]+}} : i64}
// CHECK: exec.launch @embed_f32_d16(
// CHECK: exec.launch @rms_norm_d16(
// CHECK: exec.launch @rms_norm_d32_and_rope_angles_d8_and_rope_h1_d8_and_cache_append_c32_r8_and_rope_h4_d8(
// CHECK: exec.launch @mla_attention_h4_c32_r8(
// CHECK: exec.launch @gather_rows_d48(
// CHECK: exec.launch @gather_rows_d16(
// CHECK: exec.launch @gemm_f32_n16_k48_add_rows(
// CHECK: exec.launch @route_softmax_e{{[0-9]+}}_top2_shared1_rows(
// CHECK: exec.launch @dispatch_e5_top3_rows(
// CHECK: exec.launch @combine_top3_d16_add_rows(
// CHECK: exec.launch @gemm_f32_n64_k16_argmax_rows_and_argmax_c2_rows(
// CHECK-NOT: exec.launch
