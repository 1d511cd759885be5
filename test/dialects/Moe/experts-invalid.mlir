// RUN: moe-opt %s -split-input-file -verify-diagnostics

func.func @experts_c1_types(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                            %u: tensor<8x10x16xbf16>, %d: tensor<8x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op up is 'tensor<8x10x16xbf16>', but gate is 'tensor<8x12x16xbf16>'}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x10x16xbf16>, tensor<8x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c2_experts(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                              %u: tensor<8x12x16xbf16>, %d: tensor<4x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op down 'tensor<4x16x12xbf16>' has 4 experts, but gate 'tensor<8x12x16xbf16>' has 8 experts}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<4x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c2_rows(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                           %u: tensor<8x12x16xbf16>, %d: tensor<8x12x16xbf16>) {
  // expected-error@+1 {{'moe.experts' op down 'tensor<8x12x16xbf16>' has 12 rows, but gate 'tensor<8x12x16xbf16>' has 16 columns}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c2_columns(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                              %u: tensor<8x12x16xbf16>, %d: tensor<8x16x10xbf16>) {
  // expected-error@+1 {{'moe.experts' op down 'tensor<8x16x10xbf16>' has 10 columns, but gate 'tensor<8x12x16xbf16>' has 12 rows}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x16x10xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c3_columns(%x: tensor<?x32xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                              %u: tensor<8x12x16xbf16>, %d: tensor<8x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op gate 'tensor<8x12x16xbf16>' has 16 columns, but x 'tensor<?x32xf32>' has 32 columns}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c4_rows(%x: tensor<3x16xf32>, %w: tensor<2x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                           %u: tensor<8x12x16xbf16>, %d: tensor<8x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op weights 'tensor<2x2xf32>' has 2 rows, but x 'tensor<3x16xf32>' has 3 rows}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<3x16xf32>, tensor<2x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c4_experts_rows(%x: tensor<3x16xf32>, %w: tensor<?x2xf32>, %e: tensor<2x2xi32>, %g: tensor<8x12x16xbf16>,
                                   %u: tensor<8x12x16xbf16>, %d: tensor<8x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op experts 'tensor<2x2xi32>' has 2 rows, but x 'tensor<3x16xf32>' has 3 rows}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<3x16xf32>, tensor<?x2xf32>, tensor<2x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c4_topk(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x3xi32>, %g: tensor<8x12x16xbf16>,
                           %u: tensor<8x12x16xbf16>, %d: tensor<8x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op experts 'tensor<?x3xi32>' has 3 columns, but weights 'tensor<?x2xf32>' has 2 columns}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x3xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c5_result_columns(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                                     %u: tensor<8x12x16xbf16>, %d: tensor<8x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op result 'tensor<?x12xf32>' has 12 columns, but x 'tensor<?x16xf32>' has 16 columns}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x16x12xbf16> -> tensor<?x12xf32>
  return
}

// -----

func.func @experts_c5_result_rows(%x: tensor<3x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                                  %u: tensor<8x12x16xbf16>, %d: tensor<8x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op result 'tensor<2x16xf32>' has 2 rows, but x 'tensor<3x16xf32>' has 3 rows}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d)
      : tensor<3x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x16x12xbf16> -> tensor<2x16xf32>
  return
}

// -----

func.func @experts_c5_residual_columns(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                                       %u: tensor<8x12x16xbf16>, %d: tensor<8x16x12xbf16>, %r: tensor<?x12xf32>) {
  // expected-error@+1 {{'moe.experts' op residual 'tensor<?x12xf32>' has 12 columns, but x 'tensor<?x16xf32>' has 16 columns}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d) add %r : tensor<?x12xf32>
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c5_residual_rows(%x: tensor<3x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<8x12x16xbf16>,
                                    %u: tensor<8x12x16xbf16>, %d: tensor<8x16x12xbf16>, %r: tensor<2x16xf32>) {
  // expected-error@+1 {{'moe.experts' op residual 'tensor<2x16xf32>' has 2 rows, but x 'tensor<3x16xf32>' has 3 rows}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d) add %r : tensor<2x16xf32>
      : tensor<3x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<8x12x16xbf16>, tensor<8x12x16xbf16>, tensor<8x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c7_count(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<3x12x16xbf16>,
    %u: tensor<3x12x16xbf16>, %d: tensor<3x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op has 2 members, but gate 'tensor<3x12x16xbf16>' has 3 experts}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d) members [0, 3]
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<3x12x16xbf16>, tensor<3x12x16xbf16>, tensor<3x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c7_none(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<3x12x16xbf16>,
    %u: tensor<3x12x16xbf16>, %d: tensor<3x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op has 0 members, but gate 'tensor<3x12x16xbf16>' has 3 experts}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d) members []
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<3x12x16xbf16>, tensor<3x12x16xbf16>, tensor<3x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c7_negative(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<3x12x16xbf16>,
    %u: tensor<3x12x16xbf16>, %d: tensor<3x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op members[0] is -2, expected the number of an expert}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d) members [-2, 0, 1]
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<3x12x16xbf16>, tensor<3x12x16xbf16>, tensor<3x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c7_order(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<3x12x16xbf16>,
    %u: tensor<3x12x16xbf16>, %d: tensor<3x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op members[2] is 4, expected more than the 5 before it}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d) members [0, 5, 4]
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<3x12x16xbf16>, tensor<3x12x16xbf16>, tensor<3x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c7_twice(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<3x12x16xbf16>,
    %u: tensor<3x12x16xbf16>, %d: tensor<3x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op members[1] is 4, expected more than the 4 before it}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d) members [4, 4, 5]
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<3x12x16xbf16>, tensor<3x12x16xbf16>, tensor<3x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c8_none_routed(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<3x12x16xbf16>,
    %u: tensor<3x12x16xbf16>, %d: tensor<3x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op has 3 shared experts, but gate 'tensor<3x12x16xbf16>' has 3 experts in all}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d) shared 3
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<3x12x16xbf16>, tensor<3x12x16xbf16>, tensor<3x16x12xbf16> -> tensor<?x16xf32>
  return
}

// -----

func.func @experts_c8_members(%x: tensor<?x16xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>, %g: tensor<3x12x16xbf16>,
    %u: tensor<3x12x16xbf16>, %d: tensor<3x16x12xbf16>) {
  // expected-error@+1 {{'moe.experts' op has both members and shared experts}}
  %y = moe.experts %x route(%w, %e) ffn(%g, %u, %d) members [0, 1, 5] shared 1
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<3x12x16xbf16>, tensor<3x12x16xbf16>, tensor<3x16x12xbf16> -> tensor<?x16xf32>
  return
}
