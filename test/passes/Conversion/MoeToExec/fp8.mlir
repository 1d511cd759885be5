// RUN: moe-opt %s -split-input-file -moe-to-exec | FileCheck %s

// FP8 blocks stay FP8, with their scales beside them, in linear layers, pairs and experts. What
// is no GEMM weight (the router's, here plain f16 bytes, and the table) stays what it was.

// CHECK: exec.weight @table ["table", "table_scale_inv"] recipe [#moe.dequant<fp8 128x64, f32>] : memref<100x200xf32>
// CHECK: exec.weight @q ["q.weight"] recipe [#moe.pack_panels<32>] : memref<1x10x200x32xf8E4M3FN>
// CHECK: exec.weight @q.scales ["q.weight_scale_inv"] recipe [#moe.pack_block_scales<32, 300, 128>] : memref<1x10x4x32xf32>
// CHECK: exec.weight @gate ["gate.weight", "up.weight"] recipe [#moe.pack_panels<32>] : memref<1x13x300x32xf8E4M3FN>
// CHECK: exec.weight @gate.scales ["gate.weight_scale_inv", "up.weight_scale_inv"] recipe [#moe.pack_block_scales<32, 200, 128>] : memref<1x13x5x32xf32>
// CHECK: exec.weight @router ["router.weight"] recipe [#moe.pack_panels<32>] : memref<1x1x200x32xf16>
// CHECK: exec.weight @e.g ["e.{e}.g.weight", "e.{e}.u.weight"] recipe [#moe.stack<4>, #moe.pack_panels<32>] : memref<4x3x200x32xf8E4M3FN>
// CHECK: exec.weight @e.g.scales ["e.{e}.g.weight_scale_inv", "e.{e}.u.weight_scale_inv"] recipe [#moe.stack<4>, #moe.pack_block_scales<32, 40, 128>] : memref<4x3x4x32xf32>
// CHECK: exec.weight @e.d ["e.{e}.d.weight"] recipe [#moe.stack<4>, #moe.pack_panels<32>] : memref<4x7x40x32xf8E4M3FN>
// CHECK: exec.weight @e.d.scales ["e.{e}.d.weight_scale_inv"] recipe [#moe.stack<4>, #moe.pack_block_scales<32, 200, 128>] : memref<4x7x1x32xf32>
// CHECK: exec.kernel @embed_f32_d200
// CHECK: exec.kernel @gemm_f8e4m3_n300_k200 "gemm" {{.*}}scale_cols = 64 : i64{{.*}}weight = "f8e4m3"
// CHECK: exec.launch @gemm_f8e4m3_n300_k200(%{{.+}}, %[[W:.+]], %[[S:.+]], %[[Q:.+]]) grid #{{.+}} writes [3] {{.*}} memref<1x10x200x32xf8E4M3FN>, memref<1x10x4x32xf32>, memref<?x300xf32>
// CHECK: exec.launch @gemm_f8e4m3_n200_k300_swiglu(%[[Q]], %{{.+}}, %{{.+}}, %[[X:.+]]) grid #{{.+}} writes [3]
// CHECK: exec.launch @gemm_f8e4m3_n40_k200_e4_gather_swiglu(%[[X]], %{{.+}}, %{{.+}}, %[[H:.+]], %[[O:.+]], %[[A:.+]], %[[L:.+]]) grid #{{.+}} writes [3]
// CHECK: exec.launch @gemm_f8e4m3_n200_k40_e4_scatter(%[[H]], %{{.+}}, %{{.+}}, %{{.+}}, %[[O]], %[[A]], %[[L]]) grid #{{.+}} writes [3]
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x200xf32> {
  %table = moe.weight ["table", "table_scale_inv"] recipe [#moe.dequant<fp8 128x64, f32>] : tensor<100x200xf32>
  %wq = moe.weight ["q.weight", "q.weight_scale_inv"] recipe [#moe.dequant<fp8 128x64, f32>] : tensor<300x200xf32>
  %wg = moe.weight ["gate.weight", "gate.weight_scale_inv"] recipe [#moe.dequant<fp8 128x64, f32>] : tensor<200x300xf32>
  %wu = moe.weight ["up.weight", "up.weight_scale_inv"] recipe [#moe.dequant<fp8 128x64, f32>] : tensor<200x300xf32>
  %wr = moe.weight ["router.weight"] : tensor<4x200xf16>
  %G = moe.weight ["e.{e}.g.weight", "e.{e}.g.weight_scale_inv"] recipe [#moe.dequant<fp8 128x64, bf16>, #moe.stack<4>] : tensor<4x40x200xbf16>
  %U = moe.weight ["e.{e}.u.weight", "e.{e}.u.weight_scale_inv"] recipe [#moe.dequant<fp8 128x64, bf16>, #moe.stack<4>] : tensor<4x40x200xbf16>
  %D = moe.weight ["e.{e}.d.weight", "e.{e}.d.weight_scale_inv"] recipe [#moe.dequant<fp8 128x64, bf16>, #moe.stack<4>] : tensor<4x200x40xbf16>
  %t = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x200xf32> -> tensor<?x200xf32>
  %q = moe.linear %t, %wq : tensor<?x200xf32>, tensor<300x200xf32> -> tensor<?x300xf32>
  %x = moe.gate_up %q, %wg, %wu : tensor<?x300xf32>, tensor<200x300xf32>, tensor<200x300xf32> -> tensor<?x200xf32>
  %l = moe.linear %x, %wr : tensor<?x200xf32>, tensor<4x200xf16> -> tensor<?x4xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %y = moe.experts %x route(%w, %e) ffn(%G, %U, %D)
    : tensor<?x200xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x40x200xbf16>, tensor<4x40x200xbf16>, tensor<4x200x40xbf16> -> tensor<?x200xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x200xf32>, tensor<?xi32> -> tensor<?x200xf32>
  return %r : tensor<?x200xf32>
}

// -----

// Joined weights are kept too if each block has rows of one alone; parts of the product are views of it. Blocks cut in
// two are dequantised.

// CHECK: exec.weight @a ["a.weight", "b.weight"] recipe [#moe.concat<[64, 40]>, #moe.pack_panels<32>] : memref<1x4x200x32xf8E4M3FN>
// CHECK: exec.weight @a.scales ["a.weight_scale_inv", "b.weight_scale_inv"] recipe [#moe.concat<[2, 2]>, #moe.pack_block_scales<32, 104, 32>] : memref<1x4x4x32xf32>
// CHECK: exec.weight @c ["c.weight", "c.weight_scale_inv", "d.weight", "d.weight_scale_inv"] recipe [#moe.dequant<fp8 32x64, bf16>, #moe.concat<[40, 64]>, #moe.pack_panels<32, 2>] : memref<1x4x64x32xbf16>
// CHECK: exec.launch @gemm_f8e4m3_n104_k200(%{{.+}}, %{{.+}}, %{{.+}}, %[[Y:.+]]) grid
// CHECK: %[[B:.+]] = exec.view %[[Y]] : memref<?x104xf32> to memref<?x64xf32, strided<[104, 1]>>
// CHECK: exec.launch @gemm_bf16_n104_k64(%[[B]],
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x64xf32> {
  %table = moe.weight ["table"] : tensor<100x200xf32>
  %wab = moe.weight ["a.weight", "a.weight_scale_inv", "b.weight", "b.weight_scale_inv"]
      recipe [#moe.dequant<fp8 32x64, bf16>, #moe.concat<[64, 40]>] : tensor<104x200xbf16>
  %wcd = moe.weight ["c.weight", "c.weight_scale_inv", "d.weight", "d.weight_scale_inv"]
      recipe [#moe.dequant<fp8 32x64, bf16>, #moe.concat<[40, 64]>] : tensor<104x64xbf16>
  %t = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x200xf32> -> tensor<?x200xf32>
  %ab = moe.linear %t, %wab : tensor<?x200xf32>, tensor<104x200xbf16> -> tensor<?x104xf32>
  %a, %b = moe.split %ab : tensor<?x104xf32> -> tensor<?x64xf32>, tensor<?x40xf32>
  %cd = moe.linear %a, %wcd : tensor<?x64xf32>, tensor<104x64xbf16> -> tensor<?x104xf32>
  %c, %d = moe.split %cd : tensor<?x104xf32> -> tensor<?x40xf32>, tensor<?x64xf32>
  %r = moe.gather_rows %d[%rows] : tensor<?x64xf32>, tensor<?xi32> -> tensor<?x64xf32>
  return %r : tensor<?x64xf32>
}
