// RUN: moe-opt %s -split-input-file -moe-to-exec -verify-diagnostics

// expected-error@+1 {{module has no func.func @step to lower}}
module {}

// -----

// expected-error@+1 {{expected (tokens, positions, slots, rows: 'tensor<?xi32>') -> tensor<?xVxf32> with one block}}
func.func @step(%tokens: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  return %x : tensor<?x8xf32>
}

// -----

func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  // expected-error@+1 {{gives no rows of logits: it must return what a kernel computes after moe.gather_rows}}
  return %x : tensor<?x8xf32>
}

// -----

func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  %r = moe.gather_rows %x[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  // expected-error@+1 {{works on tokens, but comes after moe.gather_rows}}
  %s = moe.gather_rows %r[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %s : tensor<?x8xf32>
}

// -----

func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %w = moe.weight ["w"] : tensor<8x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  %r = moe.gather_rows %x[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  // expected-error@+1 {{takes rows of tokens and rows of logits together}}
  %s = moe.linear %r, %w add %x : tensor<?x8xf32> : tensor<?x8xf32>, tensor<8x8xf32> -> tensor<?x8xf32>
  return %s : tensor<?x8xf32>
}

// -----

func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  %r = moe.gather_rows %x[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  // expected-error@+1 {{takes rows of tokens and rows of logits together}}
  %s = moe.swiglu %x, %r : tensor<?x8xf32>
  return %s : tensor<?x8xf32>
}

// -----

// Choices of all tokens, but rows of some.
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %wr = moe.weight ["gate"] : tensor<4x8xf32>
  %w = moe.weight ["experts.{e}"] recipe [#moe.stack<4>] : tensor<4x8x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  %l = moe.linear %x, %wr : tensor<?x8xf32>, tensor<4x8xf32> -> tensor<?x4xf32>
  %rw, %re = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %r = moe.gather_rows %x[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  // expected-error@+1 {{takes rows of tokens and rows of logits together}}
  %y = moe.experts %r route(%rw, %re) ffn(%w, %w, %w) : tensor<?x8xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
    tensor<4x8x8xf32>, tensor<4x8x8xf32>, tensor<4x8x8xf32> -> tensor<?x8xf32>
  return %y : tensor<?x8xf32>
}

// -----

// One choice has its shared experts, or none.
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %wr = moe.weight ["gate"] : tensor<4x8xf32>
  %w = moe.weight ["experts.{e}"] recipe [#moe.stack<4>] : tensor<4x8x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  %l = moe.linear %x, %wr : tensor<?x8xf32>, tensor<4x8xf32> -> tensor<?x4xf32>
  %rw, %re = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  // expected-error@+1 {{has 1 shared experts, but one of the same choice has 0}}
  %y = moe.experts %x route(%rw, %re) ffn(%w, %w, %w) shared 1 : tensor<?x8xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
    tensor<4x8x8xf32>, tensor<4x8x8xf32>, tensor<4x8x8xf32> -> tensor<?x8xf32>
  %z = moe.experts %y route(%rw, %re) ffn(%w, %w, %w) : tensor<?x8xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
    tensor<4x8x8xf32>, tensor<4x8x8xf32>, tensor<4x8x8xf32> -> tensor<?x8xf32>
  %r = moe.gather_rows %z[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %r : tensor<?x8xf32>
}

// -----

// Parts of heads do not lie side by side: joining them would be a copy.
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x4xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  %h = moe.reshape %x : tensor<?x8xf32> -> tensor<?x2x4xf32>
  %a, %b = moe.split %h : tensor<?x2x4xf32> -> tensor<?x2x2xf32>, tensor<?x2x2xf32>
  // expected-error@+1 {{joins heads that do not lie side by side}}
  %y = moe.reshape %b : tensor<?x2x2xf32> -> tensor<?x4xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32>
  return %r : tensor<?x4xf32>
}

// -----

// A gate and an up of different storage have no common panels.
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %g = moe.weight ["g"] : tensor<8x8xf32>
  // expected-note@+1 {{second weight is here}}
  %u = moe.weight ["u", "u_scale_inv"] recipe [#moe.dequant<fp8 128x128, f32>] : tensor<8x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  // expected-error@+1 {{packs two weights that differ in type or recipe}}
  %y = moe.gate_up %x, %g, %u : tensor<?x8xf32>, tensor<8x8xf32>, tensor<8x8xf32> -> tensor<?x8xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %r : tensor<?x8xf32>
}

// -----

// Attention in its plain form has no kernel.
moe.cache @kv width 20
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x16xf32> {
  %table = moe.weight ["table"] : tensor<100x20xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x20xf32> -> tensor<?x20xf32>
  %a, %b = moe.split %x : tensor<?x20xf32> -> tensor<?x16xf32>, tensor<?x4xf32>
  // expected-error@+1 {{has no kernel by itself; run moe-fuse-mla first}}
  %c:4 = moe.cache_append @kv(%a, %b) at %positions, %slots : (tensor<?x16xf32>, tensor<?x4xf32>), tensor<?xi32>, tensor<?xi32>
    -> (tensor<?x16xf32>, tensor<?x4xf32>), tensor<?xi32>, tensor<?xi32>
  %r = moe.gather_rows %c#0[%rows] : tensor<?x16xf32>, tensor<?xi32> -> tensor<?x16xf32>
  return %r : tensor<?x16xf32>
}

// -----

// The rotated query must come from its rotation, which writes it beside the absorbed one.
moe.cache @kv width 20
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x12xf32> {
  %table = moe.weight ["table"] : tensor<100x24xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x24xf32> -> tensor<?x24xf32>
  %h = moe.reshape %x : tensor<?x24xf32> -> tensor<?x2x12xf32>
  %qn, %qr = moe.split %h : tensor<?x2x12xf32> -> tensor<?x2x8xf32>, tensor<?x2x4xf32>
  %c, %k, %rest = moe.split %x : tensor<?x24xf32> -> tensor<?x16xf32>, tensor<?x4xf32>, tensor<?x4xf32>
  %uk = moe.weight ["kv_b"] recipe [#moe.head_rows<2, 0, 8>] : tensor<2x8x16xbf16>
  %uv = moe.weight ["kv_b"] recipe [#moe.head_rows<2, 8, 14>] : tensor<2x6x16xbf16>
  // expected-error@+1 {{needs a rotated query that comes from moe.rope}}
  %o = moe.mla_attention @kv query(%qn, %qr) entry(%c, %k) up(%uk, %uv) at(%positions, %slots) scale 0.25
    : (tensor<?x2x8xf32>, tensor<?x2x4xf32>, tensor<?x16xf32>, tensor<?x4xf32>, tensor<2x8x16xbf16>, tensor<2x6x16xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x6xf32>
  %y = moe.reshape %o : tensor<?x2x6xf32> -> tensor<?x12xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x12xf32>, tensor<?xi32> -> tensor<?x12xf32>
  return %r : tensor<?x12xf32>
}

// -----

// Weights are names: a tensor of the function is none.
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  // expected-error@+1 {{'arith.constant' op has no lowering to exec}}
  %table = arith.constant dense<1.0> : tensor<100x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  %r = moe.gather_rows %x[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %r : tensor<?x8xf32>
}

// -----

func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  // expected-error@+1 {{gives 'tensor<4x8xf32>', but only the number of rows may be, and must be, dynamic}}
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<4x8xf32>
  %r = moe.gather_rows %x[%rows] : tensor<4x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %r : tensor<?x8xf32>
}

// -----

func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x12xf32> {
  %table = moe.weight ["table"] : tensor<100x8xf32>
  %g = moe.weight ["a", "b"] recipe [#moe.concat<[4, 8]>] : tensor<12x8xf32>
  %u = moe.weight ["c", "d"] recipe [#moe.concat<[4, 8]>] : tensor<12x8xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x8xf32> -> tensor<?x8xf32>
  // expected-error@+1 {{packs two weights side by side, each joined of several}}
  %y = moe.gate_up %x, %g, %u : tensor<?x8xf32>, tensor<12x8xf32>, tensor<12x8xf32> -> tensor<?x12xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x12xf32>, tensor<?xi32> -> tensor<?x12xf32>
  return %r : tensor<?x12xf32>
}
