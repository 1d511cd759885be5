// RUN: moe-opt %s -split-input-file -verify-diagnostics

func.func @embed_c1_rows(%tokens: tensor<3xi32>, %table: tensor<1280x256xbf16>) {
  // expected-error@+1 {{'moe.embed' op result 'tensor<4x256xf32>' has 4 rows, but tokens 'tensor<3xi32>' has 3 entries}}
  %0 = moe.embed %tokens in %table : tensor<3xi32>, tensor<1280x256xbf16> -> tensor<4x256xf32>
  return
}

// -----

func.func @embed_c2_columns(%tokens: tensor<?xi32>, %table: tensor<1280x256xbf16>) {
  // expected-error@+1 {{'moe.embed' op result 'tensor<?x128xf32>' has 128 columns, but table 'tensor<1280x256xbf16>' has 256 columns}}
  %0 = moe.embed %tokens in %table : tensor<?xi32>, tensor<1280x256xbf16> -> tensor<?x128xf32>
  return
}

// -----

func.func @embed_tokens_i64(%tokens: tensor<?xi64>, %table: tensor<1280x256xbf16>) {
  // expected-error@+1 {{operand #1 must be 1D tensor of 32-bit signless integer values of static row size, but got 'tensor<?xi64>'}}
  %0 = moe.embed %tokens in %table : tensor<?xi64>, tensor<1280x256xbf16> -> tensor<?x256xf32>
  return
}

// -----

func.func @embed_dynamic_table(%tokens: tensor<?xi32>, %table: tensor<?x256xbf16>) {
  // expected-error@+1 {{operand #0 must be static 2D tensor of 32-bit float or 16-bit float or bfloat16 type or f8E4M3FN type values, but got 'tensor<?x256xbf16>'}}
  %0 = moe.embed %tokens in %table : tensor<?xi32>, tensor<?x256xbf16> -> tensor<?x256xf32>
  return
}

// -----

func.func @gather_rows_c1_rows(%x: tensor<?x256xf32>, %rows: tensor<3xi32>) {
  // expected-error@+1 {{'moe.gather_rows' op result 'tensor<2x256xf32>' has 2 rows, but rows 'tensor<3xi32>' has 3 entries}}
  %0 = moe.gather_rows %x[%rows] : tensor<?x256xf32>, tensor<3xi32> -> tensor<2x256xf32>
  return
}

// -----

func.func @gather_rows_c2_columns(%x: tensor<?x256xf32>, %rows: tensor<?xi32>) {
  // expected-error@+1 {{'moe.gather_rows' op result 'tensor<?x8xf32>' has 8 columns, but x 'tensor<?x256xf32>' has 256 columns}}
  %0 = moe.gather_rows %x[%rows] : tensor<?x256xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return
}

// -----

func.func @gather_rows_dynamic_columns(%x: tensor<?x?xf32>, %rows: tensor<?xi32>) {
  // expected-error@+1 {{operand #0 must be 2D tensor of 32-bit float values of static row size, but got 'tensor<?x?xf32>'}}
  %0 = moe.gather_rows %x[%rows] : tensor<?x?xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return
}
