// RUN: moe-opt %s | moe-opt | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt | FileCheck %s

// Each op with and without its optional parts, dynamic and static in rows.

// CHECK: moe.cache @kv.0 width 40
moe.cache @kv.0 width 40
// CHECK: moe.cache @kv.1 width 40 of bf16
moe.cache @kv.1 width 40 of bf16
// CHECK: moe.cache @kv.2 width 40 of #moe.cache_codes<int8, 32>
moe.cache @kv.2 width 40 of #moe.cache_codes<int8, 32>
// CHECK: moe.cache @kv.3 width 40 of #moe.cache_codes<f8e4m3, 40> {layer = 3 : i64}
moe.cache @kv.3 width 40 of #moe.cache_codes<f8e4m3, 40> {layer = 3}

// CHECK-LABEL: @rows
//       CHECK: moe.embed %{{[a-z0-9_#]+}} in %{{[a-z0-9_#]+}} : tensor<?xi32>, tensor<1280x256xbf16> -> tensor<?x256xf32>
//       CHECK: moe.gather_rows %{{[a-z0-9_#]+}}[%{{[a-z0-9_#]+}}] : tensor<?x256xf32>, tensor<3xi32> -> tensor<3x256xf32>
func.func @rows(%table: tensor<1280x256xbf16>, %tokens: tensor<?xi32>, %rows: tensor<3xi32>) -> tensor<3x256xf32> {
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<1280x256xbf16> -> tensor<?x256xf32>
  %y = moe.gather_rows %x[%rows] : tensor<?x256xf32>, tensor<3xi32> -> tensor<3x256xf32>
  return %y : tensor<3x256xf32>
}

// CHECK-LABEL: @layers
//       CHECK: moe.rms_norm %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}} eps 9.9999999999999995E-7 : tensor<?x256xf32>, tensor<256xf32> -> tensor<?x256xf32>
//       CHECK: moe.rms_norm %{{[a-z0-9_#]+}} eps 9.9999999999999995E-7 : tensor<?x256xf32> -> tensor<?x256xf32>
//       CHECK: moe.linear %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}} : tensor<?x256xf32>, tensor<512x256xf16> -> tensor<?x512xf32>
//       CHECK: moe.gate_up %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}} : tensor<?x256xf32>, tensor<512x256xf16>, tensor<512x256xf16> -> tensor<?x512xf32>
//       CHECK: moe.swiglu %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}} : tensor<?x512xf32>
//       CHECK: moe.linear %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}} add %{{[a-z0-9_#]+}} : tensor<?x256xf32> : tensor<?x512xf32>, tensor<256x512xf8E4M3FN> -> tensor<?x256xf32>
//       CHECK: moe.add %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}} : tensor<?x256xf32>
func.func @layers(%x: tensor<?x256xf32>, %g: tensor<256xf32>, %w: tensor<512x256xf16>, %d: tensor<256x512xf8E4M3FN>)
    -> tensor<?x256xf32> {
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x256xf32>, tensor<256xf32> -> tensor<?x256xf32>
  %plain = moe.rms_norm %x eps 1.0e-06 : tensor<?x256xf32> -> tensor<?x256xf32>
  %l = moe.linear %n, %w : tensor<?x256xf32>, tensor<512x256xf16> -> tensor<?x512xf32>
  %u = moe.gate_up %n, %w, %w : tensor<?x256xf32>, tensor<512x256xf16>, tensor<512x256xf16> -> tensor<?x512xf32>
  %s = moe.swiglu %l, %u : tensor<?x512xf32>
  %y = moe.linear %s, %d add %x : tensor<?x256xf32> : tensor<?x512xf32>, tensor<256x512xf8E4M3FN> -> tensor<?x256xf32>
  %z = moe.add %x, %y : tensor<?x256xf32>
  return %z : tensor<?x256xf32>
}

// CHECK-LABEL: @heads
//       CHECK: moe.reshape %{{[a-z0-9_#]+}} : tensor<5x96xf32> -> tensor<5x4x24xf32>
//       CHECK: moe.split %{{[a-z0-9_#]+}} : tensor<5x4x24xf32> -> tensor<5x4x16xf32>, tensor<5x4x8xf32>
//       CHECK: moe.rope %{{[a-z0-9_#]+}} at %{{[a-z0-9_#]+}} by #rope : tensor<5x4x8xf32>, tensor<5xi32> -> tensor<5x4x8xf32>
//       CHECK: moe.reshape %{{[a-z0-9_#]+}} : tensor<5x4x8xf32> -> tensor<5x32xf32>
//       CHECK: moe.split %{{[a-z0-9_#]+}} : tensor<5x32xf32> -> tensor<5x8xf32>, tensor<5x8xf32>, tensor<5x16xf32>
#rope = #moe.rope<factor = 1.0, inv_freq = [1.0, 0.1, 0.01, 0.001]>
func.func @heads(%q: tensor<5x96xf32>, %positions: tensor<5xi32>) -> tensor<5x16xf32> {
  %q3 = moe.reshape %q : tensor<5x96xf32> -> tensor<5x4x24xf32>
  %nope, %rope = moe.split %q3 : tensor<5x4x24xf32> -> tensor<5x4x16xf32>, tensor<5x4x8xf32>
  %rotated = moe.rope %rope at %positions by #rope : tensor<5x4x8xf32>, tensor<5xi32> -> tensor<5x4x8xf32>
  %flat = moe.reshape %rotated : tensor<5x4x8xf32> -> tensor<5x32xf32>
  %parts:3 = moe.split %flat : tensor<5x32xf32> -> tensor<5x8xf32>, tensor<5x8xf32>, tensor<5x16xf32>
  return %parts#2 : tensor<5x16xf32>
}

// CHECK-LABEL: @expanded
//       CHECK: %context:2, %context_positions, %context_slots = moe.cache_append @kv.0(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}) at %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}} :
//  CHECK-SAME:   (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
//  CHECK-SAME:   -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
//       CHECK: moe.attention query(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}) key(%{{[a-z0-9_#]+}}, %context#1) value(%{{[a-z0-9_#]+}}) at(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}})
//  CHECK-SAME:   context(%context_positions, %context_slots) scale 2.500000e-01 :
//       CHECK: -> tensor<?x4x12xf32>
func.func @expanded(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
                    %k: tensor<?x4x16xf32>, %v: tensor<?x4x12xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  %0:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %o = moe.attention query(%q, %qr) key(%k, %0#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// CHECK-LABEL: @absorbed
//       CHECK: moe.mla_attention @kv.0 query(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}) entry(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}) up(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}})
//  CHECK-SAME:   at(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}) scale 2.500000e-01 :
//  CHECK-SAME:   -> tensor<?x4x12xf32>
func.func @absorbed(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
                    %w_uk: tensor<4x16x32xbf16>, %w_uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  %o = moe.mla_attention @kv.0 query(%q, %qr) entry(%c, %kr) up(%w_uk, %w_uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>, tensor<4x16x32xbf16>,
         tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// CHECK-LABEL: @mla_expanded
//       CHECK: moe.mla_attention @kv.0 {{.*}} scale 2.500000e-01 expanded_from 64 :
func.func @mla_expanded(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
                    %w_uk: tensor<4x16x32xbf16>, %w_uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  %o = moe.mla_attention @kv.0 query(%q, %qr) entry(%c, %kr) up(%w_uk, %w_uv) at(%p, %s) scale 0.25 expanded_from 64
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>, tensor<4x16x32xbf16>,
         tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// CHECK-LABEL: @route
//       CHECK: %weights, %experts = moe.route softmax topk(6) %{{[^ ]+}} : tensor<?x64xf32> -> tensor<?x6xf32>, tensor<?x6xi32>
//       CHECK: %weights_0, %experts_1 = moe.route sigmoid topk(6) %{{[a-z0-9_#]+}} bias(%{{[a-z0-9_#]+}} : tensor<64xf32>)
//  CHECK-SAME:   {group_score = #moe.group_score<top2_sum>, groups = 8 : i64, normalize = true, scale = 2.500000e+00 : f64, topk_groups = 4 : i64}
func.func @route(%logits: tensor<?x64xf32>, %bias: tensor<64xf32>) {
  %w0, %e0 = moe.route softmax topk(6) %logits : tensor<?x64xf32> -> tensor<?x6xf32>, tensor<?x6xi32>
  %w1, %e1 = moe.route sigmoid topk(6) %logits bias(%bias : tensor<64xf32>)
      {groups = 8, topk_groups = 4, group_score = #moe.group_score<top2_sum>, normalize = true, scale = 2.5}
      : tensor<?x64xf32> -> tensor<?x6xf32>, tensor<?x6xi32>
  return
}

// CHECK-LABEL: @experts
//       CHECK: moe.experts %[[X:[a-z0-9_]+]] route(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}) ffn(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}) : tensor<?x256xf32>, tensor<?x6xf32>,
//       CHECK: moe.experts %[[X]] route(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}) ffn(%{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}, %{{[a-z0-9_#]+}}) add %[[X]] : tensor<?x256xf32> :
func.func @experts(%x: tensor<?x256xf32>, %w: tensor<?x6xf32>, %e: tensor<?x6xi32>, %g: tensor<64x128x256xbf16>,
                   %d: tensor<64x256x128xbf16>) {
  %0 = moe.experts %x route(%w, %e) ffn(%g, %g, %d)
      : tensor<?x256xf32>, tensor<?x6xf32>, tensor<?x6xi32>, tensor<64x128x256xbf16>, tensor<64x128x256xbf16>,
        tensor<64x256x128xbf16> -> tensor<?x256xf32>
  %1 = moe.experts %x route(%w, %e) ffn(%g, %g, %d) add %x : tensor<?x256xf32>
      : tensor<?x256xf32>, tensor<?x6xf32>, tensor<?x6xi32>, tensor<64x128x256xbf16>, tensor<64x128x256xbf16>,
        tensor<64x256x128xbf16> -> tensor<?x256xf32>
  return
}
