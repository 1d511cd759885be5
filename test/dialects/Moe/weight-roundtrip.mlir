// RUN: moe-opt %s | moe-opt | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt | FileCheck %s

// The name of a result comes from the name of the weight.
// CHECK-LABEL: @plain
//       CHECK: %norm = moe.weight ["model.norm.weight"] : tensor<256xbf16>
//       CHECK: %e_score_correction_bias = moe.weight ["gate.e_score_correction_bias"] : tensor<64xf32>
func.func @plain() {
  %0 = moe.weight ["model.norm.weight"] : tensor<256xbf16>
  %1 = moe.weight ["gate.e_score_correction_bias"] : tensor<64xf32>
  return
}

// CHECK-LABEL: @fp8
//       CHECK: %kv_b_proj = moe.weight ["kv_b_proj.weight", "kv_b_proj.weight_scale_inv"]
//  CHECK-SAME:   recipe [#moe.dequant<fp8 128x128, f32>, #moe.head_rows<4, 16, 28>] : tensor<4x12x32xf32>
func.func @fp8() {
  %0 = moe.weight ["kv_b_proj.weight", "kv_b_proj.weight_scale_inv"]
      recipe [#moe.dequant<fp8 128x128, f32>, #moe.head_rows<4, 16, 28>] : tensor<4x12x32xf32>
  return
}

// CHECK-LABEL: @experts
//       CHECK: moe.weight ["{e}.gate.weight", "{e}.gate.scale", "{e}.up.weight", "{e}.up.scale"]
//  CHECK-SAME:   recipe [#moe.dequant<fp8 128x128, bf16>, #moe.stack<8>, #moe.pack_panels<32>] : tensor<8x4x256x32xbf16>
//       CHECK: moe.weight ["{e}.gate.scale", "{e}.up.scale"]
//  CHECK-SAME:   recipe [#moe.stack<8>, #moe.pack_block_scales<32, 60, 128>] : tensor<8x4x2x32xf32>
func.func @experts() {
  %0 = moe.weight ["{e}.gate.weight", "{e}.gate.scale", "{e}.up.weight", "{e}.up.scale"]
      recipe [#moe.dequant<fp8 128x128, bf16>, #moe.stack<8>, #moe.pack_panels<32>] : tensor<8x4x256x32xbf16>
  %1 = moe.weight ["{e}.gate.scale", "{e}.up.scale"]
      recipe [#moe.stack<8>, #moe.pack_block_scales<32, 60, 128>] : tensor<8x4x2x32xf32>
  return
}

// CHECK-LABEL: @shapes
//       CHECK: recipe [#moe.transpose, #moe.cast<f16>, #moe.pad<48>] : tensor<32x48xf16>
//       CHECK: recipe [#moe.pad<48>, #moe.transpose, #moe.pack_panels<16>] : tensor<1x3x48x16xf32>
//       CHECK: recipe [#moe.head_rows<4, 0, 16>, #moe.transpose, #moe.pack_panels<32>] : tensor<4x1x16x32xf32>
func.func @shapes() {
  %0 = moe.weight ["a"] recipe [#moe.transpose, #moe.cast<f16>, #moe.pad<48>] : tensor<32x48xf16>
  // The pad is known through the panels: their columns, 48, were rows before the transpose.
  %1 = moe.weight ["a"] recipe [#moe.pad<48>, #moe.transpose, #moe.pack_panels<16>] : tensor<1x3x48x16xf32>
  %2 = moe.weight ["a"] recipe [#moe.head_rows<4, 0, 16>, #moe.transpose, #moe.pack_panels<32>] : tensor<4x1x16x32xf32>
  return
}

// CHECK-LABEL: @quantized
//       CHECK: recipe [#moe.stack<8>, #moe.quantize<int4, group = 64, scale = f16>] : tensor<8x48x128xf32>
//       CHECK: recipe [#moe.stack<8>, #moe.quantize<int4, group = 64, scale = f16>, #moe.pack_groups<32>] : tensor<8x3x2176xi8>
//       CHECK: recipe [#moe.quantize<int4, group = 32, scale = bf16>, #moe.head_rows<4, 0, 16>, #moe.pack_groups<32>] : tensor<4x1x2304xi8>
func.func @quantized() {
  %0 = moe.weight ["{e}.w"] recipe [#moe.stack<8>, #moe.quantize<int4, group = 64, scale = f16>] : tensor<8x48x128xf32>
  %1 = moe.weight ["{e}.gate", "{e}.up"]
      recipe [#moe.stack<8>, #moe.quantize<int4, group = 64, scale = f16>, #moe.pack_groups<32>] : tensor<8x3x2176xi8>
  %2 = moe.weight ["w"]
      recipe [#moe.quantize<int4, group = 32, scale = bf16>, #moe.head_rows<4, 0, 16>, #moe.pack_groups<32>] : tensor<4x1x2304xi8>
  return
}

// CHECK-LABEL: @joined
//       CHECK: recipe [#moe.dequant<fp8 128x128, bf16>, #moe.concat<[1536, 576]>] : tensor<2112x64xbf16>
//       CHECK: recipe [#moe.quantize<int4, group = 64, scale = f16>, #moe.concat<[40, 8]>, #moe.pack_groups<32>] : tensor<1x2x2176xi8>
func.func @joined() {
  %0 = moe.weight ["q_a", "q_a.scale", "kv_a", "kv_a.scale"]
      recipe [#moe.dequant<fp8 128x128, bf16>, #moe.concat<[1536, 576]>] : tensor<2112x64xbf16>
  %1 = moe.weight ["q_a", "kv_a"]
      recipe [#moe.quantize<int4, group = 64, scale = f16>, #moe.concat<[40, 8]>, #moe.pack_groups<32>] : tensor<1x2x2176xi8>
  return
}

// CHECK-LABEL: @stored
//       CHECK: recipe [#moe.dequant<fp8 ?x?, f32>] : tensor<8x64xf32>
//       CHECK: recipe [#moe.dequant<fp8 1x32, bf16>] : tensor<8x64xbf16>
//       CHECK: recipe [#moe.dequant<gptq 1x32 bits 4 symmetric indexed, f32>] : tensor<8x64xf32>
//       CHECK: recipe [#moe.dequant<gptq_v2 1x? bits 8, f32>] : tensor<8x64xf32>
//       CHECK: recipe [#moe.dequant<awq 1x64, f32>] : tensor<8x64xf32>
//       CHECK: recipe [#moe.dequant<packed 1x32 bits 4, f32>, #moe.stack<4>] : tensor<4x8x64xf32>
//       CHECK: recipe [#moe.dequant<gptq 1x64 bits 4 symmetric scale f16, f32>, #moe.pack_groups<32>] : tensor<1x1x1088xi8>
//       CHECK: recipe [#moe.dequant<packed 1x32 bits 8 zeros indexed, f32>] : tensor<8x64xf32>
//       CHECK: recipe [#moe.dequant<int8 1x?, f32>] : tensor<8x64xf32>
//       CHECK: recipe [#moe.dequant<nvfp4, f32>] : tensor<8x64xf32>
//       CHECK: recipe [#moe.dequant<nvfp4_modelopt, f32>] : tensor<8x64xf32>
//       CHECK: recipe [#moe.dequant<mxfp4, bf16>] : tensor<8x64xbf16>
//       CHECK: recipe [#moe.dequant<gguf_q8_0, f32>] : tensor<8x64xf32>
//       CHECK: recipe [#moe.dequant<gguf_q4_0, f32>, #moe.stack<4>] : tensor<4x8x64xf32>
//       CHECK: recipe [#moe.dequant<gguf_q4_k, f32>] : tensor<8x256xf32>
//       CHECK: recipe [#moe.dequant<gguf_q6_k, f32>, #moe.cast<bf16>] : tensor<8x256xbf16>
func.func @stored() {
  %0 = moe.weight ["c", "s"] recipe [#moe.dequant<fp8 ?x?, f32>] : tensor<8x64xf32>
  %1 = moe.weight ["c", "s"] recipe [#moe.dequant<fp8 1x32, bf16>] : tensor<8x64xbf16>
  %2 = moe.weight ["c", "s", "z", "g"] recipe [#moe.dequant<gptq 1x32 bits 4 symmetric indexed, f32>] : tensor<8x64xf32>
  %3 = moe.weight ["c", "s", "z"] recipe [#moe.dequant<gptq_v2 1x? bits 8, f32>] : tensor<8x64xf32>
  %4 = moe.weight ["c", "s", "z"] recipe [#moe.dequant<awq 1x64, f32>] : tensor<8x64xf32>
  %5 = moe.weight ["{e}.c", "{e}.s", "{e}.h"] recipe [#moe.dequant<packed 1x32 bits 4, f32>, #moe.stack<4>] : tensor<4x8x64xf32>
  %20 = moe.weight ["c", "s", "z"] recipe [#moe.dequant<gptq 1x64 bits 4 symmetric scale f16, f32>, #moe.pack_groups<32>] : tensor<1x1x1088xi8>
  %6 = moe.weight ["c", "s", "z", "g", "h"] recipe [#moe.dequant<packed 1x32 bits 8 zeros indexed, f32>] : tensor<8x64xf32>
  %7 = moe.weight ["c", "s"] recipe [#moe.dequant<int8 1x?, f32>] : tensor<8x64xf32>
  %8 = moe.weight ["c", "s", "g"] recipe [#moe.dequant<nvfp4, f32>] : tensor<8x64xf32>
  %9 = moe.weight ["c", "s", "g"] recipe [#moe.dequant<nvfp4_modelopt, f32>] : tensor<8x64xf32>
  %10 = moe.weight ["c", "s"] recipe [#moe.dequant<mxfp4, bf16>] : tensor<8x64xbf16>
  %11 = moe.weight ["b"] recipe [#moe.dequant<gguf_q8_0, f32>] : tensor<8x64xf32>
  %12 = moe.weight ["b{e}"] recipe [#moe.dequant<gguf_q4_0, f32>, #moe.stack<4>] : tensor<4x8x64xf32>
  %13 = moe.weight ["b"] recipe [#moe.dequant<gguf_q4_k, f32>] : tensor<8x256xf32>
  %14 = moe.weight ["b"] recipe [#moe.dequant<gguf_q6_k, f32>, #moe.cast<bf16>] : tensor<8x256xbf16>
  return
}
