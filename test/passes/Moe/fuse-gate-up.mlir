// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fuse-gate-up))' | FileCheck %s

// CHECK-LABEL: @fuse
//  CHECK-SAME: %[[X:.+]]: tensor<?x16xf32>, %[[G:.+]]: tensor<8x16xbf16>, %[[U:.+]]: tensor<8x16xbf16>
//  CHECK-NEXT: %[[Y:.+]] = moe.gate_up %[[X]], %[[G]], %[[U]] : tensor<?x16xf32>, tensor<8x16xbf16>, tensor<8x16xbf16> -> tensor<?x8xf32>
//  CHECK-NEXT: return %[[Y]]
func.func @fuse(%x: tensor<?x16xf32>, %g: tensor<8x16xbf16>, %u: tensor<8x16xbf16>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %g : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %x, %u : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %2 = moe.swiglu %0, %1 : tensor<?x8xf32>
  return %2 : tensor<?x8xf32>
}

// CHECK-LABEL: @different_inputs
//   CHECK-NOT: moe.gate_up
//       CHECK: moe.swiglu
func.func @different_inputs(%x: tensor<?x16xf32>, %z: tensor<?x16xf32>, %g: tensor<8x16xbf16>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %g : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %z, %g : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %2 = moe.swiglu %0, %1 : tensor<?x8xf32>
  return %2 : tensor<?x8xf32>
}

// CHECK-LABEL: @different_types
//   CHECK-NOT: moe.gate_up
//       CHECK: moe.swiglu
func.func @different_types(%x: tensor<?x16xf32>, %g: tensor<8x16xbf16>, %u: tensor<8x16xf16>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %g : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %x, %u : tensor<?x16xf32>, tensor<8x16xf16> -> tensor<?x8xf32>
  %2 = moe.swiglu %0, %1 : tensor<?x8xf32>
  return %2 : tensor<?x8xf32>
}

// CHECK-LABEL: @stored_alike
//       CHECK: moe.gate_up
func.func @stored_alike(%x: tensor<?x64xf32>) -> tensor<?x8xf32> {
  %g = moe.weight ["g"] recipe [#moe.dequant<gguf_q8_0, f32>] : tensor<8x64xf32>
  %u = moe.weight ["u"] recipe [#moe.dequant<gguf_q8_0, f32>] : tensor<8x64xf32>
  %0 = moe.linear %x, %g : tensor<?x64xf32>, tensor<8x64xf32> -> tensor<?x8xf32>
  %1 = moe.linear %x, %u : tensor<?x64xf32>, tensor<8x64xf32> -> tensor<?x8xf32>
  %2 = moe.swiglu %0, %1 : tensor<?x8xf32>
  return %2 : tensor<?x8xf32>
}

// CHECK-LABEL: @stored_otherwise
//   CHECK-NOT: moe.gate_up
//       CHECK: moe.swiglu
func.func @stored_otherwise(%x: tensor<?x64xf32>) -> tensor<?x8xf32> {
  %g = moe.weight ["g"] recipe [#moe.dequant<gguf_q8_0, f32>] : tensor<8x64xf32>
  %u = moe.weight ["u"] recipe [#moe.dequant<gguf_q4_0, f32>] : tensor<8x64xf32>
  %0 = moe.linear %x, %g : tensor<?x64xf32>, tensor<8x64xf32> -> tensor<?x8xf32>
  %1 = moe.linear %x, %u : tensor<?x64xf32>, tensor<8x64xf32> -> tensor<?x8xf32>
  %2 = moe.swiglu %0, %1 : tensor<?x8xf32>
  return %2 : tensor<?x8xf32>
}

// CHECK-LABEL: @residual
//   CHECK-NOT: moe.gate_up
//       CHECK: moe.swiglu
func.func @residual(%x: tensor<?x16xf32>, %r: tensor<?x8xf32>, %g: tensor<8x16xbf16>, %u: tensor<8x16xbf16>)
    -> tensor<?x8xf32> {
  %0 = moe.linear %x, %g : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %x, %u add %r : tensor<?x8xf32> : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %2 = moe.swiglu %0, %1 : tensor<?x8xf32>
  return %2 : tensor<?x8xf32>
}

// CHECK-LABEL: @other_use
//   CHECK-NOT: moe.gate_up
//       CHECK: moe.swiglu
func.func @other_use(%x: tensor<?x16xf32>, %g: tensor<8x16xbf16>, %u: tensor<8x16xbf16>)
    -> (tensor<?x8xf32>, tensor<?x8xf32>) {
  %0 = moe.linear %x, %g : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %x, %u : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %2 = moe.swiglu %0, %1 : tensor<?x8xf32>
  return %2, %1 : tensor<?x8xf32>, tensor<?x8xf32>
}

// One linear as both: its second use is the swiglu itself.
// CHECK-LABEL: @same_projection
//   CHECK-NOT: moe.gate_up
//       CHECK: moe.swiglu
func.func @same_projection(%x: tensor<?x16xf32>, %g: tensor<8x16xbf16>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %g : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.swiglu %0, %0 : tensor<?x8xf32>
  return %1 : tensor<?x8xf32>
}
