// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fuse-residual))' | FileCheck %s

// CHECK-LABEL: @linear
//  CHECK-SAME: %[[X:.+]]: tensor<?x16xf32>, %[[W:.+]]: tensor<8x16xbf16>, %[[R:.+]]: tensor<?x8xf32>
//  CHECK-NEXT: %[[Y:.+]] = moe.linear %[[X]], %[[W]] add %[[R]] : tensor<?x8xf32> : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
//  CHECK-NEXT: return %[[Y]]
func.func @linear(%x: tensor<?x16xf32>, %w: tensor<8x16xbf16>, %r: tensor<?x8xf32>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %w : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.add %r, %0 : tensor<?x8xf32>
  return %1 : tensor<?x8xf32>
}

// The residual comes after the linear: the linear moves to it.
// CHECK-LABEL: @other_order_and_later_residual
//  CHECK-SAME: %[[X:.+]]: tensor<?x16xf32>, %[[W:.+]]: tensor<8x16xbf16>, %[[R:.+]]: tensor<?x8xf32>, %[[G:.+]]: tensor<8xbf16>
//  CHECK-NEXT: %[[N:.+]] = moe.rms_norm %[[R]], %[[G]]
//  CHECK-NEXT: %[[Y:.+]] = moe.linear %[[X]], %[[W]] add %[[N]]
//  CHECK-NEXT: return %[[Y]]
func.func @other_order_and_later_residual(%x: tensor<?x16xf32>, %w: tensor<8x16xbf16>, %r: tensor<?x8xf32>,
                                          %g: tensor<8xbf16>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %w : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %n = moe.rms_norm %r, %g eps 1.0e-06 : tensor<?x8xf32>, tensor<8xbf16> -> tensor<?x8xf32>
  %1 = moe.add %0, %n : tensor<?x8xf32>
  return %1 : tensor<?x8xf32>
}

// CHECK-LABEL: @experts_before_linear
//  CHECK-SAME: %[[X:.+]]: tensor<?x16xf32>, %[[H:.+]]: tensor<?x8xf32>, %[[W:.+]]: tensor<16x8xbf16>,
//       CHECK: %[[S:.+]] = moe.linear %[[H]], %[[W]] : tensor<?x8xf32>
//       CHECK: %[[Y:.+]] = moe.experts %[[X]] route(%{{.+}}, %{{.+}}) ffn(%{{.+}}, %{{.+}}, %{{.+}}) add %[[S]] : tensor<?x16xf32> :
//       CHECK: %[[Z:.+]] = moe.add %[[X]], %[[Y]]
//       CHECK: return %[[Z]]
func.func @experts_before_linear(%x: tensor<?x16xf32>, %h: tensor<?x8xf32>, %w: tensor<16x8xbf16>,
                                 %rw: tensor<?x2xf32>, %re: tensor<?x2xi32>, %g: tensor<4x12x16xbf16>,
                                 %d: tensor<4x16x12xbf16>) -> tensor<?x16xf32> {
  %y = moe.experts %x route(%rw, %re) ffn(%g, %g, %d)
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x12x16xbf16>, tensor<4x12x16xbf16>,
        tensor<4x16x12xbf16> -> tensor<?x16xf32>
  %shared = moe.linear %h, %w : tensor<?x8xf32>, tensor<16x8xbf16> -> tensor<?x16xf32>
  %s = moe.add %y, %shared : tensor<?x16xf32>
  // The experts have their one residual: this sum stays.
  %z = moe.add %x, %s : tensor<?x16xf32>
  return %z : tensor<?x16xf32>
}

// Of two linears the second takes the first; a chain fuses link by link.
// CHECK-LABEL: @chain
//  CHECK-SAME: %[[X:.+]]: tensor<?x16xf32>, %[[V:.+]]: tensor<8x16xbf16>, %[[W:.+]]: tensor<8x16xbf16>, %[[R:.+]]: tensor<?x8xf32>
//  CHECK-NEXT: %[[A:.+]] = moe.linear %[[X]], %[[V]] :
//  CHECK-NEXT: %[[B:.+]] = moe.linear %[[X]], %[[W]] add %[[A]]
//  CHECK-NEXT: %[[C:.+]] = moe.linear %[[X]], %[[W]] add %[[B]]
//  CHECK-NEXT: %[[D:.+]] = moe.linear %[[X]], %[[V]] add %[[C]]
//  CHECK-NEXT: return %[[D]]
func.func @chain(%x: tensor<?x16xf32>, %v: tensor<8x16xbf16>, %w: tensor<8x16xbf16>, %r: tensor<?x8xf32>)
    -> tensor<?x8xf32> {
  %0 = moe.linear %x, %v : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %x, %w : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %2 = moe.add %0, %1 : tensor<?x8xf32>
  %3 = moe.linear %x, %w : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %4 = moe.add %2, %3 : tensor<?x8xf32>
  %5 = moe.linear %x, %v : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %6 = moe.add %5, %4 : tensor<?x8xf32>
  return %6 : tensor<?x8xf32>
}

// CHECK-LABEL: @one_residual_only
//       CHECK: %[[Y:.+]] = moe.linear %{{.+}}, %{{.+}} add
//       CHECK: moe.add %{{.+}}, %[[Y]]
func.func @one_residual_only(%x: tensor<?x16xf32>, %w: tensor<8x16xbf16>, %r: tensor<?x8xf32>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %w add %r : tensor<?x8xf32> : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.add %r, %0 : tensor<?x8xf32>
  return %1 : tensor<?x8xf32>
}

// CHECK-LABEL: @other_use
//       CHECK: %[[Y:.+]] = moe.linear %{{.+}}, %{{.+}} : tensor<?x16xf32>
//       CHECK: moe.add %{{.+}}, %[[Y]]
func.func @other_use(%x: tensor<?x16xf32>, %w: tensor<8x16xbf16>, %r: tensor<?x8xf32>)
    -> (tensor<?x8xf32>, tensor<?x8xf32>) {
  %0 = moe.linear %x, %w : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.add %r, %0 : tensor<?x8xf32>
  return %0, %1 : tensor<?x8xf32>, tensor<?x8xf32>
}

// CHECK-LABEL: @twice_the_same
//       CHECK: %[[Y:.+]] = moe.linear %{{.+}}, %{{.+}} : tensor<?x16xf32>
//       CHECK: moe.add %[[Y]], %[[Y]]
func.func @twice_the_same(%x: tensor<?x16xf32>, %w: tensor<8x16xbf16>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %w : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.add %0, %0 : tensor<?x8xf32>
  return %1 : tensor<?x8xf32>
}

// A linear outside of a loop is not moved into it.
// CHECK-LABEL: @another_block
//       CHECK: %[[Y:.+]] = moe.linear %{{.+}}, %{{.+}} : tensor<?x16xf32>
//       CHECK: scf.for
//       CHECK: moe.add %{{.+}}, %[[Y]]
func.func @another_block(%x: tensor<?x16xf32>, %w: tensor<8x16xbf16>, %r: tensor<?x8xf32>, %n: index) -> tensor<?x8xf32> {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %0 = moe.linear %x, %w : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = scf.for %i = %zero to %n step %one iter_args(%acc = %r) -> tensor<?x8xf32> {
    %2 = moe.add %acc, %0 : tensor<?x8xf32>
    scf.yield %2 : tensor<?x8xf32>
  }
  return %1 : tensor<?x8xf32>
}
