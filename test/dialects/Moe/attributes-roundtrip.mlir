// RUN: moe-opt %s | moe-opt | FileCheck %s

// Layers share their frequencies: one alias for all.
// Nine digits: what is read again is the same float32.
// CHECK: #rope = #moe.rope<factor = 1.000000e+00 : f64, inv_freq = [1.000000e+00, 0.00999999977]>
// CHECK: #rope1 = #moe.rope<factor = 5.000000e-01 : f64, inv_freq = [1.000000e+00]>
// CHECK-LABEL: @alias
//  CHECK-SAME: %[[X:.+]]: tensor<?x4xf32>, %[[Y:.+]]: tensor<?x2xf32>, %[[P:.+]]: tensor<?xi32>
//       CHECK: %[[X1:.+]] = moe.rope %[[X]] at %[[P]] by #rope :
//       CHECK: moe.rope %[[X1]] at %[[P]] by #rope :
//       CHECK: moe.rope %[[Y]] at %[[P]] by #rope1 :
func.func @alias(%x: tensor<?x4xf32>, %y: tensor<?x2xf32>, %p: tensor<?xi32>) {
  %0 = moe.rope %x at %p by <factor = 1.0, inv_freq = [1.0, 0.01]> : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32>
  %1 = moe.rope %0 at %p by <factor = 1.0, inv_freq = [1.0, 0.01]>
      : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32>
  %2 = moe.rope %y at %p by <factor = 0.5, inv_freq = [1.0]> : tensor<?x2xf32>, tensor<?xi32> -> tensor<?x2xf32>
  return
}

// CHECK-LABEL: @steps
//  CHECK-SAME: append = #moe.append<columns, 2>
//  CHECK-SAME: cast = #moe.cast<bf16>
//  CHECK-SAME: columns = #moe.columns<2, 6>
//  CHECK-SAME: concat = #moe.concat<[1536, 576]>
//  CHECK-SAME: dequant = #moe.dequant<fp8 128x64, f16>
//  CHECK-SAME: head_rows = #moe.head_rows<4, 0, 16>
//  CHECK-SAME: pack = #moe.pack_panels<32>
//  CHECK-SAME: pack_pairs = #moe.pack_panels<32, 2>
//  CHECK-SAME: pad = #moe.pad<64>
//  CHECK-SAME: reshape = #moe.reshape<[4, 12], [4, 2, 6]>
//  CHECK-SAME: scale_columns = #moe.scale_columns<"a.norm.weight">
//  CHECK-SAME: scales = #moe.pack_block_scales<32, 1408, 128>
//  CHECK-SAME: some = #moe.stack<[0, 3, 5]>
//  CHECK-SAME: stack = #moe.stack<64>
//  CHECK-SAME: sum = #moe.sum
//  CHECK-SAME: transpose = #moe.transpose
func.func private @steps() attributes {
  append = #moe.append<columns, 2>, cast = #moe.cast<bf16>, columns = #moe.columns<2, 6>, concat = #moe.concat<[1536, 576]>,
  dequant = #moe.dequant<fp8 128x64, f16>,
  head_rows = #moe.head_rows<4, 0, 16>, pack = #moe.pack_panels<32, 1>, pack_pairs = #moe.pack_panels<32, 2>, pad = #moe.pad<64>,
  reshape = #moe.reshape<[4, 12], [4, 2, 6]>, scale_columns = #moe.scale_columns<"a.norm.weight">, scales = #moe.pack_block_scales<32, 1408, 128>,
  some = #moe.stack<[0, 3, 5]>, stack = #moe.stack<64>, sum = #moe.sum, transpose = #moe.transpose}
