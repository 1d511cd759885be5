// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fold-norm{dense=int4 attention=bf16 head=int8 experts=int4 overrides=kept=keep}))' \
// RUN:   --remark-policy=all --remark-format=emitRemark --remarks-filter='moe-fold-norm' -verify-diagnostics -o %t
// RUN: FileCheck %s --input-file %t --implicit-check-not=moe.scale_columns

// Of each norm it is said what became of it. Only the first one is folded.
// CHECK: moe.scale_columns<"g">

func.func @folded(%x: tensor<?x32xf32>) -> tensor<?x8xf32> {
  %g = moe.weight ["g"] : tensor<32xbf16>
  // expected-remark@+1 {{[Passed] fusion | Category:moe-fold-norm | Function=folded | Remark="into 1 weight"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %w = moe.weight ["w"] : tensor<8x32xbf16>
  %y = moe.linear %n, %w : tensor<?x32xf32>, tensor<8x32xbf16> -> tensor<?x8xf32>
  return %y : tensor<?x8xf32>
}

// One of two readers has room, the other is kept in bf16.
func.func @kept(%x: tensor<?x32xf32>) -> (tensor<?x8xf32>, tensor<?x8xf32>) {
  %g = moe.weight ["g"] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a reader whose weight is kept in fewer bits than products need"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %w = moe.weight ["w"] : tensor<8x32xbf16>
  %k = moe.weight ["kept"] : tensor<8x32xbf16>
  %y = moe.linear %n, %w : tensor<?x32xf32>, tensor<8x32xbf16> -> tensor<?x8xf32>
  %z = moe.linear %n, %k : tensor<?x32xf32>, tensor<8x32xbf16> -> tensor<?x8xf32>
  return %y, %z : tensor<?x8xf32>, tensor<?x8xf32>
}

// One expert of four is kept.
func.func @kept_expert(%x: tensor<?x32xf32>, %w: tensor<?x2xf32>, %e: tensor<?x2xi32>) -> tensor<?x32xf32> {
  %g = moe.weight ["g"] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a reader whose weight is kept in fewer bits than products need"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %G = moe.weight ["{e}.kept"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %n route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  return %y : tensor<?x32xf32>
}

func.func @stored_codes(%x: tensor<?x128xf32>) -> tensor<?x128xf32> {
  %g = moe.weight ["g"] : tensor<128xbf16>
  // expected-remark@+1 {{Remark="has a reader whose weight keeps the codes of the checkpoint"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x128xf32>, tensor<128xbf16> -> tensor<?x128xf32>
  %w = moe.weight ["kept", "s"] recipe [#moe.dequant<fp8 128x128, f32>] : tensor<128x128xf32>
  %y = moe.linear %n, %w : tensor<?x128xf32>, tensor<128x128xf32> -> tensor<?x128xf32>
  return %y : tensor<?x128xf32>
}

// Asked for as int4, it has no more than four bits already, which may come out as they are.
func.func @few_bits(%x: tensor<?x32xf32>) -> tensor<?x8xf32> {
  %g = moe.weight ["g"] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a reader whose weight is quantized in the checkpoint, to no more bits than asked for"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %w = moe.weight ["w", "s"] recipe [#moe.dequant<mxfp4, bf16>] : tensor<8x32xbf16>
  %y = moe.linear %n, %w : tensor<?x32xf32>, tensor<8x32xbf16> -> tensor<?x8xf32>
  return %y : tensor<?x8xf32>
}

func.func @rounded_before(%x: tensor<?x32xf32>) -> tensor<?x8xf32> {
  %g = moe.weight ["g"] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a reader whose weight is rounded before"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %w = moe.weight ["w"] recipe [#moe.quantize<int4, group = 32, scale = f16>] : tensor<8x32xf32>
  %y = moe.linear %n, %w : tensor<?x32xf32>, tensor<8x32xf32> -> tensor<?x8xf32>
  return %y : tensor<?x8xf32>
}

// bf16 is asked for of the way to an attention; the latent, which the cache keeps, is read by no projection.
moe.cache @kv width 40
func.func @attention(%x: tensor<?x32xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) -> tensor<?x4x12xf32> {
  %g = moe.weight ["g"] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a reader whose weight is cast to 16 bits, too few for products"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %w = moe.weight ["q"] : tensor<96x32xf32>
  %qs = moe.linear %n, %w : tensor<?x32xf32>, tensor<96x32xf32> -> tensor<?x96xf32>
  %q3 = moe.reshape %qs : tensor<?x96xf32> -> tensor<?x4x24xf32>
  %q, %qr = moe.split %q3 : tensor<?x4x24xf32> -> tensor<?x4x16xf32>, tensor<?x4x8xf32>
  %h = moe.weight ["h"] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a reader that is no projection"}}
  %l = moe.rms_norm %c, %h eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %w_uk = moe.weight ["kv_b"] recipe [#moe.head_rows<4, 0, 16>] : tensor<4x16x32xbf16>
  %w_uv = moe.weight ["kv_b"] recipe [#moe.head_rows<4, 16, 28>] : tensor<4x12x32xbf16>
  %o = moe.mla_attention @kv query(%q, %qr) entry(%l, %k) up(%w_uk, %w_uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>, tensor<4x16x32xbf16>,
         tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// The result is multiplied, but also a residual; in the second function it is rounded first.
func.func @residual(%x: tensor<?x32xf32>) -> tensor<?x32xf32> {
  %g = moe.weight ["g"] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a reader that is no projection"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %w = moe.weight ["w"] : tensor<32x32xbf16>
  %y = moe.linear %n, %w add %n : tensor<?x32xf32> : tensor<?x32xf32>, tensor<32x32xbf16> -> tensor<?x32xf32>
  return %y : tensor<?x32xf32>
}

func.func @rounded_input(%x: tensor<?x32xf32>) -> tensor<?x8xf32> {
  %g = moe.weight ["g"] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a reader that is no projection"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %q = moe.fake_quantize %n : tensor<?x32xf32> to #moe.quantize<int8, group = 32, scale = f32>
  %w = moe.weight ["w"] : tensor<8x32xbf16>
  %y = moe.linear %q, %w : tensor<?x32xf32>, tensor<8x32xbf16> -> tensor<?x8xf32>
  return %y : tensor<?x8xf32>
}

func.func @made_weight(%x: tensor<?x32xf32>) -> tensor<?x8xf32> {
  %g = moe.weight ["g"] recipe [#moe.pad<32>] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a weight that is no tensor of the checkpoint by itself"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %w = moe.weight ["w"] : tensor<8x32xbf16>
  %y = moe.linear %n, %w : tensor<?x32xf32>, tensor<8x32xbf16> -> tensor<?x8xf32>
  return %y : tensor<?x8xf32>
}

func.func @argument(%x: tensor<?x32xf32>, %w: tensor<8x32xbf16>) -> tensor<?x8xf32> {
  %g = moe.weight ["g"] : tensor<32xbf16>
  // expected-remark@+1 {{Remark="has a reader without a weight of the checkpoint"}}
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %y = moe.linear %n, %w : tensor<?x32xf32>, tensor<8x32xbf16> -> tensor<?x8xf32>
  return %y : tensor<?x8xf32>
}
