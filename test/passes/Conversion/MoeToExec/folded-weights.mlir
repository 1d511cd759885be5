// RUN: moe-opt %s -canonicalize -moe-to-exec=max-tokens=64 | FileCheck %s
// RUN: not moe-opt %s -moe-to-exec=max-tokens=64 2>&1 | FileCheck %s --check-prefix=PLAIN

// Half of a tensor, doubled, is a weight like any other once that is in its recipe.

// CHECK: exec.weight @both ["both.weight", "both.weight"] recipe [#moe.columns<0, 24>, #moe.sum, #moe.pack_panels<32>] : memref<1x1x24x32xf32>
// PLAIN: error: 'moe.split' op gives 'tensor<24x24xf32>', but only the number of rows may be, and must be, dynamic
module attributes {moe.model = {layers = 0 : i64}} {
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x24xf32> {
  %table = moe.weight ["model.embed_tokens.weight"] : tensor<100x24xbf16>
  %both = moe.weight ["both.weight"] : tensor<24x48xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x24xbf16> -> tensor<?x24xf32>
  %first, %second = moe.split %both : tensor<24x48xf32> -> tensor<24x24xf32>, tensor<24x24xf32>
  %w = moe.add %first, %first : tensor<24x24xf32>
  %r = moe.gather_rows %x[%rows] : tensor<?x24xf32>, tensor<?xi32> -> tensor<?x24xf32>
  %y = moe.linear %r, %w : tensor<?x24xf32>, tensor<24x24xf32> -> tensor<?x24xf32>
  return %y : tensor<?x24xf32>
}
}
