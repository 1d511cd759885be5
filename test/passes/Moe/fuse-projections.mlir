// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fuse-projections))' | FileCheck %s

// CHECK-LABEL: @fuse
//  CHECK-SAME: %[[X:.+]]: tensor<?x16xf32>)
//  CHECK-NEXT: %[[W:.+]] = moe.weight ["q_a", "kv_a"] recipe [#moe.concat<[8, 5]>] : tensor<13x16xbf16>
//  CHECK-NEXT: %[[Y:.+]] = moe.linear %[[X]], %[[W]] : tensor<?x16xf32>, tensor<13x16xbf16> -> tensor<?x13xf32>
//  CHECK-NEXT: %[[P:.+]]:2 = moe.split %[[Y]] : tensor<?x13xf32> -> tensor<?x8xf32>, tensor<?x5xf32>
//  CHECK-NEXT: %[[Q:.+]] = moe.reshape %[[P]]#0
//  CHECK-NEXT: %[[K:.+]] = moe.reshape %[[P]]#1
//  CHECK-NEXT: return %[[Q]], %[[K]]
func.func @fuse(%x: tensor<?x16xf32>) -> (tensor<?x2x4xf32>, tensor<?x1x5xf32>) {
  %q_a = moe.weight ["q_a"] : tensor<8x16xbf16>
  %q = moe.linear %x, %q_a : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %q3 = moe.reshape %q : tensor<?x8xf32> -> tensor<?x2x4xf32>
  %kv_a = moe.weight ["kv_a"] : tensor<5x16xbf16>
  %k = moe.linear %x, %kv_a : tensor<?x16xf32>, tensor<5x16xbf16> -> tensor<?x5xf32>
  %k3 = moe.reshape %k : tensor<?x5xf32> -> tensor<?x1x5xf32>
  return %q3, %k3 : tensor<?x2x4xf32>, tensor<?x1x5xf32>
}

// All that are stored alike, others among themselves.
// CHECK-LABEL: @kinds
//       CHECK: moe.weight ["a.c", "a.s", "c.c", "c.s", "e.c", "e.s"] recipe [#moe.dequant<int8 1x?, f32>, #moe.quantize<int4, group = 32, scale = f16>, #moe.concat<[8, 4, 8]>] : tensor<20x32xf32>
//       CHECK: moe.weight ["b", "d"] recipe [#moe.cast<f16>, #moe.concat<[8, 8]>] : tensor<16x32xf16>
//   CHECK-NOT: moe.weight
func.func @kinds(%x: tensor<?x32xf32>)
    -> (tensor<?x1x8xf32>, tensor<?x1x8xf32>, tensor<?x1x4xf32>, tensor<?x1x8xf32>, tensor<?x1x8xf32>) {
  %a = moe.weight ["a.c", "a.s"] recipe [#moe.dequant<int8 1x?, f32>, #moe.quantize<int4, group = 32, scale = f16>] : tensor<8x32xf32>
  %b = moe.weight ["b"] recipe [#moe.cast<f16>] : tensor<8x32xf16>
  %c = moe.weight ["c.c", "c.s"] recipe [#moe.dequant<int8 1x?, f32>, #moe.quantize<int4, group = 32, scale = f16>] : tensor<4x32xf32>
  %d = moe.weight ["d"] recipe [#moe.cast<f16>] : tensor<8x32xf16>
  %e = moe.weight ["e.c", "e.s"] recipe [#moe.dequant<int8 1x?, f32>, #moe.quantize<int4, group = 32, scale = f16>] : tensor<8x32xf32>
  %0 = moe.linear %x, %a : tensor<?x32xf32>, tensor<8x32xf32> -> tensor<?x8xf32>
  %1 = moe.linear %x, %b : tensor<?x32xf32>, tensor<8x32xf16> -> tensor<?x8xf32>
  %2 = moe.linear %x, %c : tensor<?x32xf32>, tensor<4x32xf32> -> tensor<?x4xf32>
  %3 = moe.linear %x, %d : tensor<?x32xf32>, tensor<8x32xf16> -> tensor<?x8xf32>
  %4 = moe.linear %x, %e : tensor<?x32xf32>, tensor<8x32xf32> -> tensor<?x8xf32>
  %r0 = moe.reshape %0 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r1 = moe.reshape %1 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r2 = moe.reshape %2 : tensor<?x4xf32> -> tensor<?x1x4xf32>
  %r3 = moe.reshape %3 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r4 = moe.reshape %4 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %r0, %r1, %r2, %r3, %r4
      : tensor<?x1x8xf32>, tensor<?x1x8xf32>, tensor<?x1x4xf32>, tensor<?x1x8xf32>, tensor<?x1x8xf32>
}

// FP8 blocks of 16 rows stay whole: 24 rows come after 32, wherever they are in the function, and 8 not at all.
// CHECK-LABEL: @blocks
//       CHECK: %[[W:.+]] = moe.weight ["b", "b.s", "a", "a.s"] recipe [#moe.dequant<fp8 16x16, bf16>, #moe.concat<[32, 24]>] : tensor<56x16xbf16>
//       CHECK: %[[Y:.+]] = moe.linear %{{.+}}, %[[W]]
//       CHECK: %[[P:.+]]:2 = moe.split %[[Y]] : tensor<?x56xf32> -> tensor<?x32xf32>, tensor<?x24xf32>
//       CHECK: %[[C:.+]] = moe.linear %{{.+}}, %{{.+}} : tensor<?x16xf32>, tensor<8x16xbf16>
//       CHECK: moe.reshape %[[P]]#1
//       CHECK: moe.reshape %[[P]]#0
//       CHECK: moe.reshape %[[C]]
func.func @blocks(%x: tensor<?x16xf32>) -> (tensor<?x1x24xf32>, tensor<?x1x32xf32>, tensor<?x1x8xf32>) {
  %a = moe.weight ["a", "a.s"] recipe [#moe.dequant<fp8 16x16, bf16>] : tensor<24x16xbf16>
  %b = moe.weight ["b", "b.s"] recipe [#moe.dequant<fp8 16x16, bf16>] : tensor<32x16xbf16>
  %c = moe.weight ["c", "c.s"] recipe [#moe.dequant<fp8 16x16, bf16>] : tensor<8x16xbf16>
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<24x16xbf16> -> tensor<?x24xf32>
  %1 = moe.linear %x, %b : tensor<?x16xf32>, tensor<32x16xbf16> -> tensor<?x32xf32>
  %2 = moe.linear %x, %c : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %r0 = moe.reshape %0 : tensor<?x24xf32> -> tensor<?x1x24xf32>
  %r1 = moe.reshape %1 : tensor<?x32xf32> -> tensor<?x1x32xf32>
  %r2 = moe.reshape %2 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %r0, %r1, %r2 : tensor<?x1x24xf32>, tensor<?x1x32xf32>, tensor<?x1x8xf32>
}

// Neither part is whole blocks: one of them would have to give its FP8 up.
// CHECK-LABEL: @parts_of_blocks
//   CHECK-NOT: moe.split
func.func @parts_of_blocks(%x: tensor<?x16xf32>) -> (tensor<?x1x24xf32>, tensor<?x1x8xf32>) {
  %a = moe.weight ["a", "a.s"] recipe [#moe.dequant<fp8 16x16, bf16>] : tensor<24x16xbf16>
  %b = moe.weight ["b", "b.s"] recipe [#moe.dequant<fp8 16x16, bf16>] : tensor<8x16xbf16>
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<24x16xbf16> -> tensor<?x24xf32>
  %1 = moe.linear %x, %b : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %r0 = moe.reshape %0 : tensor<?x24xf32> -> tensor<?x1x24xf32>
  %r1 = moe.reshape %1 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %r0, %r1 : tensor<?x1x24xf32>, tensor<?x1x8xf32>
}

// Once it has given them up anyway, it may be anywhere.
// CHECK-LABEL: @blocks_in_another_format
//       CHECK: recipe [#moe.dequant<fp8 16x16, bf16>, #moe.cast<f16>, #moe.concat<[24, 8]>]
func.func @blocks_in_another_format(%x: tensor<?x16xf32>) -> (tensor<?x1x24xf32>, tensor<?x1x8xf32>) {
  %a = moe.weight ["a", "a.s"] recipe [#moe.dequant<fp8 16x16, bf16>, #moe.cast<f16>] : tensor<24x16xf16>
  %b = moe.weight ["b", "b.s"] recipe [#moe.dequant<fp8 16x16, bf16>, #moe.cast<f16>] : tensor<8x16xf16>
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<24x16xf16> -> tensor<?x24xf32>
  %1 = moe.linear %x, %b : tensor<?x16xf32>, tensor<8x16xf16> -> tensor<?x8xf32>
  %r0 = moe.reshape %0 : tensor<?x24xf32> -> tensor<?x1x24xf32>
  %r1 = moe.reshape %1 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %r0, %r1 : tensor<?x1x24xf32>, tensor<?x1x8xf32>
}

// CHECK-LABEL: @different_inputs
//   CHECK-NOT: moe.split
func.func @different_inputs(%x: tensor<?x16xf32>, %z: tensor<?x16xf32>) -> (tensor<?x1x8xf32>, tensor<?x1x8xf32>) {
  %a = moe.weight ["a"] : tensor<8x16xbf16>
  %b = moe.weight ["b"] : tensor<8x16xbf16>
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %z, %b : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %r0 = moe.reshape %0 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r1 = moe.reshape %1 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %r0, %r1 : tensor<?x1x8xf32>, tensor<?x1x8xf32>
}

// CHECK-LABEL: @different_types
//   CHECK-NOT: moe.split
func.func @different_types(%x: tensor<?x16xf32>) -> (tensor<?x1x8xf32>, tensor<?x1x8xf32>) {
  %a = moe.weight ["a"] : tensor<8x16xbf16>
  %b = moe.weight ["b"] : tensor<8x16xf16>
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %x, %b : tensor<?x16xf32>, tensor<8x16xf16> -> tensor<?x8xf32>
  %r0 = moe.reshape %0 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r1 = moe.reshape %1 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %r0, %r1 : tensor<?x1x8xf32>, tensor<?x1x8xf32>
}

// The weight of one is the function's, that of another is read twice.
// CHECK-LABEL: @weights_of_others
//   CHECK-NOT: moe.split
func.func @weights_of_others(%x: tensor<?x16xf32>, %z: tensor<?x16xf32>, %a: tensor<8x16xbf16>)
    -> (tensor<?x1x8xf32>, tensor<?x1x8xf32>, tensor<?x1x8xf32>, tensor<?x1x8xf32>) {
  %b = moe.weight ["b"] : tensor<8x16xbf16>
  %c = moe.weight ["c"] : tensor<8x16xbf16>
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %x, %b : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %2 = moe.linear %z, %b : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %3 = moe.linear %x, %c : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %r0 = moe.reshape %0 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r1 = moe.reshape %1 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r2 = moe.reshape %2 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r3 = moe.reshape %3 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %r0, %r1, %r2, %r3 : tensor<?x1x8xf32>, tensor<?x1x8xf32>, tensor<?x1x8xf32>, tensor<?x1x8xf32>
}

// A router, two that add a residual or will, and one whose result leaves.
// CHECK-LABEL: @other_uses
//   CHECK-NOT: moe.split
func.func @other_uses(%x: tensor<?x16xf32>, %r: tensor<?x8xf32>)
    -> (tensor<?x2xf32>, tensor<?x2xi32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x1x8xf32>) {
  %a = moe.weight ["a"] : tensor<8x16xbf16>
  %b = moe.weight ["b"] : tensor<8x16xbf16>
  %c = moe.weight ["c"] : tensor<8x16xbf16>
  %d = moe.weight ["d"] : tensor<8x16xbf16>
  %e = moe.weight ["e"] : tensor<8x16xbf16>
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %w, %i = moe.route softmax topk(2) %0 : tensor<?x8xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %1 = moe.linear %x, %b add %r : tensor<?x8xf32> : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %2 = moe.linear %x, %c : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %s = moe.add %r, %2 : tensor<?x8xf32>
  %3 = moe.linear %x, %d : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %4 = moe.linear %x, %e : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %r4 = moe.reshape %4 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %w, %i, %1, %s, %3, %r4
      : tensor<?x2xf32>, tensor<?x2xi32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x1x8xf32>
}
