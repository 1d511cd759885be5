// RUN: moe-opt %s -split-input-file -verify-diagnostics

func.func @linear_c1_columns(%x: tensor<?x32xf32>, %w: tensor<8x16xbf16>) {
  // expected-error@+1 {{'moe.linear' op weight 'tensor<8x16xbf16>' has 16 columns, but x 'tensor<?x32xf32>' has 32 columns}}
  %0 = moe.linear %x, %w : tensor<?x32xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  return
}

// -----

func.func @linear_c2_result_columns(%x: tensor<?x16xf32>, %w: tensor<8x16xbf16>) {
  // expected-error@+1 {{'moe.linear' op result 'tensor<?x16xf32>' has 16 columns, but weight 'tensor<8x16xbf16>' has 8 rows}}
  %0 = moe.linear %x, %w : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @linear_c3_rows(%x: tensor<3x16xf32>, %w: tensor<8x16xbf16>) {
  // expected-error@+1 {{'moe.linear' op result 'tensor<4x8xf32>' has 4 rows, but x 'tensor<3x16xf32>' has 3 rows}}
  %0 = moe.linear %x, %w : tensor<3x16xf32>, tensor<8x16xbf16> -> tensor<4x8xf32>
  return
}

// -----

func.func @linear_c4_residual_rows(%x: tensor<3x16xf32>, %w: tensor<8x16xbf16>, %r: tensor<4x8xf32>) {
  // expected-error@+1 {{'moe.linear' op residual 'tensor<4x8xf32>' has 4 rows, but result 'tensor<3x8xf32>' has 3 rows}}
  %0 = moe.linear %x, %w add %r : tensor<4x8xf32> : tensor<3x16xf32>, tensor<8x16xbf16> -> tensor<3x8xf32>
  return
}

// -----

func.func @linear_c4_residual_columns(%x: tensor<?x16xf32>, %w: tensor<8x16xbf16>, %r: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.linear' op residual 'tensor<?x16xf32>' has 16 columns, but result 'tensor<?x8xf32>' has 8 columns}}
  %0 = moe.linear %x, %w add %r : tensor<?x16xf32> : tensor<?x16xf32>, tensor<8x16xbf16> -> tensor<?x8xf32>
  return
}

// -----

func.func @gate_up_c1_types(%x: tensor<?x16xf32>, %g: tensor<8x16xbf16>, %u: tensor<8x16xf16>) {
  // expected-error@+1 {{'moe.gate_up' op up is 'tensor<8x16xf16>', but gate is 'tensor<8x16xbf16>'}}
  %0 = moe.gate_up %x, %g, %u : tensor<?x16xf32>, tensor<8x16xbf16>, tensor<8x16xf16> -> tensor<?x8xf32>
  return
}

// -----

func.func @gate_up_c2_columns(%x: tensor<?x32xf32>, %g: tensor<8x16xbf16>) {
  // expected-error@+1 {{'moe.gate_up' op gate 'tensor<8x16xbf16>' has 16 columns, but x 'tensor<?x32xf32>' has 32 columns}}
  %0 = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<8x16xbf16>, tensor<8x16xbf16> -> tensor<?x8xf32>
  return
}

// -----

func.func @gate_up_c3_result_columns(%x: tensor<?x16xf32>, %g: tensor<8x16xbf16>) {
  // expected-error@+1 {{'moe.gate_up' op result 'tensor<?x16xf32>' has 16 columns, but gate 'tensor<8x16xbf16>' has 8 rows}}
  %0 = moe.gate_up %x, %g, %g : tensor<?x16xf32>, tensor<8x16xbf16>, tensor<8x16xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @gate_up_c4_rows(%x: tensor<2x16xf32>, %g: tensor<8x16xbf16>) {
  // expected-error@+1 {{'moe.gate_up' op result 'tensor<1x8xf32>' has 1 rows, but x 'tensor<2x16xf32>' has 2 rows}}
  %0 = moe.gate_up %x, %g, %g : tensor<2x16xf32>, tensor<8x16xbf16>, tensor<8x16xbf16> -> tensor<1x8xf32>
  return
}

// -----

func.func @swiglu_c1_types(%g: tensor<?x16xf32>, %u: tensor<?x8xf32>) {
  // expected-error@+1 {{'moe.swiglu' op requires the same type for all operands and results}}
  %0 = "moe.swiglu"(%g, %u) : (tensor<?x16xf32>, tensor<?x8xf32>) -> tensor<?x16xf32>
  return
}

// -----

func.func @add_c1_types(%x: tensor<?x16xf32>, %y: tensor<?x8xf32>) {
  // expected-error@+1 {{'moe.add' op requires the same type for all operands and results}}
  %0 = "moe.add"(%x, %y) : (tensor<?x16xf32>, tensor<?x8xf32>) -> tensor<?x16xf32>
  return
}

// -----

func.func @add_bf16(%x: tensor<?x16xbf16>) {
  // expected-error@+1 {{operand #0 must be 2D tensor of 32-bit float values of static row size, but got 'tensor<?x16xbf16>'}}
  %0 = moe.add %x, %x : tensor<?x16xbf16>
  return
}

// -----

func.func @rms_norm_c1_weight(%x: tensor<?x16xf32>, %g: tensor<8xbf16>) {
  // expected-error@+1 {{'moe.rms_norm' op weight 'tensor<8xbf16>' has 8 elements, but x 'tensor<?x16xf32>' has 16 columns}}
  %0 = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x16xf32>, tensor<8xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @rms_norm_c2_rows(%x: tensor<2x16xf32>, %g: tensor<16xbf16>) {
  // expected-error@+1 {{'moe.rms_norm' op result 'tensor<3x16xf32>' has 3 rows, but x 'tensor<2x16xf32>' has 2 rows}}
  %0 = moe.rms_norm %x, %g eps 1.0e-06 : tensor<2x16xf32>, tensor<16xbf16> -> tensor<3x16xf32>
  return
}

// -----

func.func @rms_norm_c2_columns(%x: tensor<?x16xf32>, %g: tensor<16xbf16>) {
  // expected-error@+1 {{'moe.rms_norm' op result 'tensor<?x8xf32>' has 8 columns, but x 'tensor<?x16xf32>' has 16 columns}}
  %0 = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x16xf32>, tensor<16xbf16> -> tensor<?x8xf32>
  return
}

// -----

func.func @rms_norm_c3_negative(%x: tensor<?x16xf32>, %g: tensor<16xbf16>) {
  // expected-error@+1 {{'moe.rms_norm' op eps is -1.000000e+00, expected a finite number of at least 0}}
  %0 = moe.rms_norm %x, %g eps -1.0 : tensor<?x16xf32>, tensor<16xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @rms_norm_c3_nan(%x: tensor<?x16xf32>, %g: tensor<16xbf16>) {
  // expected-error@+1 {{'moe.rms_norm' op eps is nan, expected a finite number of at least 0}}
  %0 = moe.rms_norm %x, %g eps 0x7FF8000000000000 : tensor<?x16xf32>, tensor<16xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @reshape_c1_rows(%x: tensor<2x16xf32>) {
  // expected-error@+1 {{'moe.reshape' op result 'tensor<4x8xf32>' has 4 rows, but x 'tensor<2x16xf32>' has 2 rows}}
  %0 = moe.reshape %x : tensor<2x16xf32> -> tensor<4x8xf32>
  return
}

// -----

func.func @reshape_c2_elements(%x: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.reshape' op result 'tensor<?x3x5xf32>' has rows of 15 elements, but x 'tensor<?x16xf32>' has rows of 16}}
  %0 = moe.reshape %x : tensor<?x16xf32> -> tensor<?x3x5xf32>
  return
}

// -----

func.func @reshape_rank_four(%x: tensor<?x16xf32>) {
  // expected-error@+1 {{result #0 must be 2D/3D tensor of 32-bit float values of static row size, but got 'tensor<?x2x2x4xf32>'}}
  %0 = moe.reshape %x : tensor<?x16xf32> -> tensor<?x2x2x4xf32>
  return
}

// -----

func.func @split_c1_no_part(%x: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.split' op gives no part, expected one or more}}
  "moe.split"(%x) : (tensor<?x16xf32>) -> ()
  return
}

// -----

func.func @split_c2_rank(%x: tensor<?x2x16xf32>) {
  // expected-error@+1 {{'moe.split' op part 'tensor<?x16xf32>' has 2 dimensions, but x 'tensor<?x2x16xf32>' has 3}}
  %0 = moe.split %x : tensor<?x2x16xf32> -> tensor<?x16xf32>
  return
}

// -----

func.func @split_c2_rows(%x: tensor<2x16xf32>) {
  // expected-error@+1 {{'moe.split' op part 'tensor<3x8xf32>' has 3 rows, but x 'tensor<2x16xf32>' has 2 rows}}
  %0, %1 = moe.split %x : tensor<2x16xf32> -> tensor<2x8xf32>, tensor<3x8xf32>
  return
}

// -----

func.func @split_c2_heads(%x: tensor<?x2x16xf32>) {
  // expected-error@+1 {{'moe.split' op part 'tensor<?x4x16xf32>' has 4 heads, but x 'tensor<?x2x16xf32>' has 2 heads}}
  %0 = moe.split %x : tensor<?x2x16xf32> -> tensor<?x4x16xf32>
  return
}

// -----

func.func @split_c3_columns(%x: tensor<?x16xf32>) {
  // expected-error@+1 {{'moe.split' op the parts have 15 columns together, but x 'tensor<?x16xf32>' has 16}}
  %0, %1 = moe.split %x : tensor<?x16xf32> -> tensor<?x8xf32>, tensor<?x7xf32>
  return
}

// -----

func.func @rope_c1_pairs(%x: tensor<?x2x6xf32>, %p: tensor<?xi32>) {
  // expected-error@+1 {{'moe.rope' op x 'tensor<?x2x6xf32>' has 6 channels to rotate, but inv_freq has 2 pairs}}
  %0 = moe.rope %x at %p by <factor = 1.0, inv_freq = [1.0, 0.01]> : tensor<?x2x6xf32>, tensor<?xi32> -> tensor<?x2x6xf32>
  return
}

// -----

func.func @rope_c2_positions(%x: tensor<3x4xf32>, %p: tensor<2xi32>) {
  // expected-error@+1 {{'moe.rope' op positions 'tensor<2xi32>' has 2 entries, but x 'tensor<3x4xf32>' has 3 rows}}
  %0 = moe.rope %x at %p by <factor = 1.0, inv_freq = [1.0, 0.01]> : tensor<3x4xf32>, tensor<2xi32> -> tensor<3x4xf32>
  return
}

// -----

func.func @rope_c3_result(%x: tensor<?x2x4xf32>, %p: tensor<?xi32>) {
  // expected-error@+1 {{'moe.rope' op result is 'tensor<?x8xf32>', but x is 'tensor<?x2x4xf32>'}}
  %0 = moe.rope %x at %p by <factor = 1.0, inv_freq = [1.0, 0.01]> : tensor<?x2x4xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return
}
