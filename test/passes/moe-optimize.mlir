// RUN: moe-opt %s -moe-optimize | FileCheck %s
// RUN: moe-opt %s -moe-optimize | moe-opt -moe-optimize | FileCheck %s

// One layer in the form an importer gives, with what it may leave lying about: equal weights, reshapes back and
// forth. What stays is one op for each thing that will be launched.

moe.cache @kv.0 width 40

// CHECK-LABEL: @step
//   CHECK-NOT: moe.cache_append
//   CHECK-NOT: moe.attention
//       CHECK: %[[X:.+]] = moe.embed
//       CHECK: %[[N:.+]] = moe.rms_norm %[[X]],
//       CHECK: moe.weight ["q_proj.weight", "kv_a_proj.weight"] recipe [#moe.concat<[96, 40]>]
//       CHECK: %[[P:.+]] = moe.linear %[[N]],
//       CHECK: moe.split %[[P]] : tensor<?x136xf32> -> tensor<?x96xf32>, tensor<?x40xf32>
//       CHECK: %[[O:.+]] = moe.mla_attention @kv.0
//       CHECK: %[[F:.+]] = moe.reshape %[[O]] : tensor<?x4x12xf32> -> tensor<?x48xf32>
//   CHECK-DAG: %[[FR:.+]] = moe.gather_rows %[[F]]
//   CHECK-DAG: %[[XR:.+]] = moe.gather_rows %[[X]]
//       CHECK: %[[X1:.+]] = moe.linear %[[FR]], %{{[a-z0-9_]+}} add %[[XR]] :
//       CHECK: %[[N1:.+]] = moe.rms_norm %[[X1]],
//       CHECK: %[[L:.+]] = moe.linear %[[N1]],
//       CHECK: %[[W:.+]], %[[E:.+]] = moe.route softmax topk(2) %[[L]]
//       CHECK: moe.weight ["experts.{e}.gate_proj.weight", "shared_experts.gate_proj.weight"] recipe [#moe.stack<4>, #moe.append<rows, 1>] : tensor<5x12x16xf32>
//       CHECK: %[[X2:.+]] = moe.experts %[[N1]] route(%[[W]], %[[E]]) {{.*}} shared 1 add %[[X1]] :
//   CHECK-NOT: moe.gather_rows
//   CHECK-NOT: moe.weight
//       CHECK: %[[LOGITS:.+]] = moe.linear %[[X2]],
//       CHECK: return %[[LOGITS]]
#rope = #moe.rope<factor = 1.0, inv_freq = [1.0, 0.1, 0.01, 0.001]>
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>)
    -> tensor<?x64xf32> {
  %embed = moe.weight ["embed.weight"] : tensor<64x16xf32>
  %x = moe.embed %tokens in %embed : tensor<?xi32>, tensor<64x16xf32> -> tensor<?x16xf32>
  %g0 = moe.weight ["input_layernorm.weight"] : tensor<16xf32>
  %n = moe.rms_norm %x, %g0 eps 1.0e-06 : tensor<?x16xf32>, tensor<16xf32> -> tensor<?x16xf32>
  %q_proj = moe.weight ["q_proj.weight"] : tensor<96x16xf32>
  %q = moe.linear %n, %q_proj : tensor<?x16xf32>, tensor<96x16xf32> -> tensor<?x96xf32>
  %q3 = moe.reshape %q : tensor<?x96xf32> -> tensor<?x4x24xf32>
  %qn, %qr0 = moe.split %q3 : tensor<?x4x24xf32> -> tensor<?x4x16xf32>, tensor<?x4x8xf32>
  %qr = moe.rope %qr0 at %positions by #rope : tensor<?x4x8xf32>, tensor<?xi32> -> tensor<?x4x8xf32>
  %kv_a_proj = moe.weight ["kv_a_proj.weight"] : tensor<40x16xf32>
  %kva = moe.linear %n, %kv_a_proj : tensor<?x16xf32>, tensor<40x16xf32> -> tensor<?x40xf32>
  %c0, %kr0 = moe.split %kva : tensor<?x40xf32> -> tensor<?x32xf32>, tensor<?x8xf32>
  %g1 = moe.weight ["kv_a_layernorm.weight"] : tensor<32xf32>
  %c = moe.rms_norm %c0, %g1 eps 1.0e-06 : tensor<?x32xf32>, tensor<32xf32> -> tensor<?x32xf32>
  %kr = moe.rope %kr0 at %positions by #rope : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %positions, %slots
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv_b_proj = moe.weight ["kv_b_proj.weight"] : tensor<112x32xf32>
  %kv = moe.linear %ctx#0, %kv_b_proj : tensor<?x32xf32>, tensor<112x32xf32> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kv3_flat = moe.reshape %kv3 : tensor<?x4x28xf32> -> tensor<?x112xf32>
  %kv3_again = moe.reshape %kv3_flat : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3_again : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o3 = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%positions, %slots) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  %o = moe.reshape %o3 : tensor<?x4x12xf32> -> tensor<?x48xf32>
  %o_proj = moe.weight ["o_proj.weight"] : tensor<16x48xf32>
  %a = moe.linear %o, %o_proj : tensor<?x48xf32>, tensor<16x48xf32> -> tensor<?x16xf32>
  %x1 = moe.add %x, %a : tensor<?x16xf32>

  %g2 = moe.weight ["post_attention_layernorm.weight"] : tensor<16xf32>
  %n1 = moe.rms_norm %x1, %g2 eps 1.0e-06 : tensor<?x16xf32>, tensor<16xf32> -> tensor<?x16xf32>
  %gate = moe.weight ["gate.weight"] : tensor<4x16xf32>
  %logits = moe.linear %n1, %gate : tensor<?x16xf32>, tensor<4x16xf32> -> tensor<?x4xf32>
  %w, %e = moe.route softmax topk(2) %logits : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %gs = moe.weight ["experts.{e}.gate_proj.weight"] recipe [#moe.stack<4>] : tensor<4x12x16xf32>
  %us = moe.weight ["experts.{e}.up_proj.weight"] recipe [#moe.stack<4>] : tensor<4x12x16xf32>
  %ds = moe.weight ["experts.{e}.down_proj.weight"] recipe [#moe.stack<4>] : tensor<4x16x12xf32>
  %y = moe.experts %n1 route(%w, %e) ffn(%gs, %us, %ds)
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x12x16xf32>, tensor<4x12x16xf32>,
        tensor<4x16x12xf32> -> tensor<?x16xf32>
  %gw = moe.weight ["shared_experts.gate_proj.weight"] : tensor<12x16xf32>
  %uw = moe.weight ["shared_experts.up_proj.weight"] : tensor<12x16xf32>
  %dw = moe.weight ["shared_experts.down_proj.weight"] : tensor<16x12xf32>
  %sg = moe.linear %n1, %gw : tensor<?x16xf32>, tensor<12x16xf32> -> tensor<?x12xf32>
  %su = moe.linear %n1, %uw : tensor<?x16xf32>, tensor<12x16xf32> -> tensor<?x12xf32>
  %sh = moe.swiglu %sg, %su : tensor<?x12xf32>
  %shared = moe.linear %sh, %dw : tensor<?x12xf32>, tensor<16x12xf32> -> tensor<?x16xf32>
  %sum = moe.add %y, %shared : tensor<?x16xf32>
  %x2 = moe.add %x1, %sum : tensor<?x16xf32>

  %r = moe.gather_rows %x2[%rows] : tensor<?x16xf32>, tensor<?xi32> -> tensor<?x16xf32>
  // Tied: the table again.
  %lm_head = moe.weight ["embed.weight"] : tensor<64x16xf32>
  %result = moe.linear %r, %lm_head : tensor<?x16xf32>, tensor<64x16xf32> -> tensor<?x64xf32>
  return %result : tensor<?x64xf32>
}
