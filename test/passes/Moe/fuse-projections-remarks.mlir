// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fuse-projections))' \
// RUN:   --remark-policy=all --remark-format=emitRemark --remarks-filter='moe-fuse-.*' -verify-diagnostics

// Nothing was missed where one alone reads its input.
func.func @alone(%x: tensor<?x16xf32>, %a: tensor<8x16xbf16>) -> tensor<?x8xf32> {
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  return %0 : tensor<?x8xf32>
}

func.func @projections(%x: tensor<?x16xf32>) -> (tensor<?x1x8xf32>, tensor<?x1x8xf32>, tensor<?x8xf32>) {
  %a = moe.weight ["a"] : tensor<8x16xbf16>
  %b = moe.weight ["b"] : tensor<8x16xbf16>
  %c = moe.weight ["c"] : tensor<8x16xbf16>
  // expected-remark@+1 {{[Passed] fusion | Category:moe-fuse-projections | Function=projections | Remark="into moe.split"}}
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  // expected-remark@+1 {{[Passed] fusion | Category:moe-fuse-projections | Function=projections | Remark="into moe.split"}}
  %1 = moe.linear %x, %b : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  // expected-remark@+1 {{[Missed] fusion | Category:moe-fuse-projections | Function=projections | Remark="gives a result of the function"}}
  %2 = moe.linear %x, %c : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %r0 = moe.reshape %0 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r1 = moe.reshape %1 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %r0, %r1, %2 : tensor<?x1x8xf32>, tensor<?x1x8xf32>, tensor<?x8xf32>
}

func.func @stored_apart(%x: tensor<?x16xf32>) -> (tensor<?x1x24xf32>, tensor<?x1x8xf32>, tensor<?x1x8xf32>) {
  %a = moe.weight ["a", "a.s"] recipe [#moe.dequant<fp8 16x16, bf16>] : tensor<24x16xbf16>
  %b = moe.weight ["b", "b.s"] recipe [#moe.dequant<fp8 16x16, bf16>] : tensor<8x16xbf16>
  %c = moe.weight ["c"] : tensor<8x16xbf16>
  // expected-remark@+1 {{Remark="no other projection of its input is stored as it is"}}
  %0 = moe.linear %x, %a : tensor<?x16xf32>, tensor<24x16xbf16> -> tensor<?x24xf32>
  // expected-remark@+1 {{Remark="has a last block of FP8 rows that is not whole, as another has"}}
  %1 = moe.linear %x, %b : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  // expected-remark@+1 {{Remark="no other projection of its input is stored as it is"}}
  %2 = moe.linear %x, %c : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  %r0 = moe.reshape %0 : tensor<?x24xf32> -> tensor<?x1x24xf32>
  %r1 = moe.reshape %1 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  %r2 = moe.reshape %2 : tensor<?x8xf32> -> tensor<?x1x8xf32>
  return %r0, %r1, %r2 : tensor<?x1x24xf32>, tensor<?x1x8xf32>, tensor<?x1x8xf32>
}
