// RUN: moe-opt %s -moe-to-exec=max-tokens=0 -verify-diagnostics

// expected-error@below {{max-tokens is 0, expected at least 1}}
module {
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  %r = moe.gather_rows %x[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %r : tensor<?x8xf32>
}
}
