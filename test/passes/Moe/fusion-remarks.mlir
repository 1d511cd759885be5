// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fuse-gate-up,moe-fuse-residual))' \
// RUN:   --remark-policy=all --remark-format=emitRemark --remarks-filter='moe-fuse-.*' -verify-diagnostics

// Fusions say what they did and, of what they left alone, why.

func.func @fused(%x: tensor<?x16xf32>, %g: tensor<8x16xbf16>, %u: tensor<8x16xbf16>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %g : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %x, %u : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  // expected-remark@+1 {{[Passed] fusion | Category:moe-fuse-gate-up | Function=fused | Remark="into moe.gate_up"}}
  %2 = moe.swiglu %0, %1 : tensor<?x8xf32>
  return %2 : tensor<?x8xf32>
}

func.func @another_use(%x: tensor<?x16xf32>, %g: tensor<8x16xbf16>, %u: tensor<8x16xbf16>)
    -> (tensor<?x8xf32>, tensor<?x8xf32>) {
  %0 = moe.linear %x, %g : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %1 = moe.linear %x, %u : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  // expected-remark@+1 {{[Missed] fusion | Category:moe-fuse-gate-up | Function=another_use | Remark="gate or up has another use"}}
  %2 = moe.swiglu %0, %1 : tensor<?x8xf32>
  return %1, %2 : tensor<?x8xf32>, tensor<?x8xf32>
}

// An op that could take one residual of two: the first sum is fused, the second told why it is not.
func.func @one_residual(%x: tensor<?x16xf32>, %w: tensor<16x16xf32>, %r: tensor<?x16xf32>, %s: tensor<?x16xf32>)
    -> tensor<?x16xf32> {
  %y = moe.linear %x, %w : tensor<?x16xf32>, tensor<16x16xf32> -> tensor<?x16xf32>
  // expected-remark@+1 {{[Passed] fusion | Category:moe-fuse-residual | Function=one_residual | Remark="into moe.linear"}}
  %a = moe.add %r, %y : tensor<?x16xf32>
  // expected-remark@+1 {{[Missed] fusion | Category:moe-fuse-residual | Function=one_residual | Remark="moe.linear adds a residual already"}}
  %b = moe.add %s, %a : tensor<?x16xf32>
  return %b : tensor<?x16xf32>
}

func.func @nothing_to_add_to(%r: tensor<?x16xf32>, %s: tensor<?x16xf32>) -> tensor<?x16xf32> {
  // expected-remark@+1 {{Remark="no operand is a linear or experts"}}
  %b = moe.add %s, %r : tensor<?x16xf32>
  return %b : tensor<?x16xf32>
}
