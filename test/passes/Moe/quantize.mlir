// RUN: moe-opt %s -split-input-file -verify-diagnostics -pass-pipeline='builtin.module(func.func(moe-quantize{experts=int4 attention=int4:g64:bf16 dense=bf16 head=f16}))' | FileCheck %s

// What a weight is for shows in what reads it: never in its name.
// CHECK-LABEL: @roles
//   CHECK-DAG: %[[TABLE:.+]] = moe.weight ["w.table"] : tensor<8x64xbf16>
//   CHECK-DAG: %[[NORM:.+]] = moe.weight ["w.norm"] : tensor<64xf32>
//   CHECK-DAG: %[[QA:.+]] = moe.weight ["w.qa"] recipe [#moe.quantize<int4, group = 64, scale = bf16>] : tensor<64x64xf32>
//   CHECK-DAG: %[[QB:.+]] = moe.weight ["w.qb"] recipe [#moe.quantize<int4, group = 64, scale = bf16>] : tensor<96x64xf32>
//   CHECK-DAG: %[[KV:.+]] = moe.weight ["w.kv", "w.kv.s"] recipe [#moe.dequant<fp8 128x128, f32>, #moe.quantize<int4, group = 64, scale = bf16>] : tensor<48x64xf32>
//   CHECK-DAG: %[[UK:.+]] = moe.weight ["w.uk"] : tensor<2x32x32xbf16>
//   CHECK-DAG: %[[O:.+]] = moe.weight ["w.o"] recipe [#moe.quantize<int4, group = 64, scale = bf16>] : tensor<64x64xf32>
//   CHECK-DAG: %[[ROUTER:.+]] = moe.weight ["w.router"] : tensor<4x64xf32>
//   CHECK-DAG: %[[E:.+]] = moe.weight ["w.{e}"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 32, scale = f16>] : tensor<4x32x64xf32>
//   CHECK-DAG: %[[D:.+]] = moe.weight ["w.{e}.d"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 32, scale = f16>] : tensor<4x64x32xf32>
//   CHECK-DAG: %[[SG:.+]] = moe.weight ["w.sg"] recipe [#moe.cast<bf16>] : tensor<32x64xbf16>
//   CHECK-DAG: %[[SU:.+]] = moe.weight ["w.su"] recipe [#moe.cast<bf16>] : tensor<32x64xbf16>
//   CHECK-DAG: %[[SD:.+]] = moe.weight ["w.sd"] : tensor<64x32xbf16>
//   CHECK-DAG: %[[HEAD:.+]] = moe.weight ["w.head"] recipe [#moe.cast<f16>] : tensor<8x64xf16>
//       CHECK: moe.embed %{{.+}} in %[[TABLE]]
//       CHECK: moe.linear %{{.+}}, %[[QA]]
//       CHECK: moe.linear %{{.+}}, %[[QB]]
//       CHECK: moe.linear %{{.+}}, %[[KV]]
//       CHECK: moe.linear %{{.+}}, %[[O]]
//       CHECK: moe.linear %{{.+}}, %[[ROUTER]]
//       CHECK: ffn(%[[E]], %{{.+}}, %[[D]])
//       CHECK: moe.gate_up %{{.+}}, %[[SG]], %[[SU]]
//       CHECK: moe.linear %{{.+}}, %[[SD]]
//       CHECK: moe.linear %{{.+}}, %[[HEAD]]
moe.cache @kv width 48
#rope = #moe.rope<factor = 1.0, inv_freq = [1.0, 0.5, 0.25, 0.125, 0.1, 0.05, 0.02, 0.01]>
func.func @roles(%tokens: tensor<?xi32>, %p: tensor<?xi32>, %s: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %table = moe.weight ["w.table"] : tensor<8x64xbf16>
  %norm = moe.weight ["w.norm"] : tensor<64xf32>
  %wqa = moe.weight ["w.qa"] : tensor<64x64xf32>
  %wqb = moe.weight ["w.qb"] : tensor<96x64xf32>
  %wkv = moe.weight ["w.kv", "w.kv.s"] recipe [#moe.dequant<fp8 128x128, f32>] : tensor<48x64xf32>
  %wuk = moe.weight ["w.uk"] : tensor<2x32x32xbf16>
  %wuv = moe.weight ["w.uv"] : tensor<2x32x32xbf16>
  %wo = moe.weight ["w.o"] : tensor<64x64xf32>
  %wr = moe.weight ["w.router"] : tensor<4x64xf32>
  %we = moe.weight ["w.{e}"] recipe [#moe.stack<4>] : tensor<4x32x64xf32>
  %wd = moe.weight ["w.{e}.d"] recipe [#moe.stack<4>] : tensor<4x64x32xf32>
  %wsg = moe.weight ["w.sg"] : tensor<32x64xf32>
  %wsu = moe.weight ["w.su"] : tensor<32x64xf32>
  %wsd = moe.weight ["w.sd"] : tensor<64x32xbf16>
  %wh = moe.weight ["w.head"] : tensor<8x64xf32>
  %x = moe.embed %tokens in %table : tensor<?xi32>, tensor<8x64xbf16> -> tensor<?x64xf32>
  %n = moe.rms_norm %x, %norm eps 1.0e-6 : tensor<?x64xf32>, tensor<64xf32> -> tensor<?x64xf32>
  %qa = moe.linear %n, %wqa : tensor<?x64xf32>, tensor<64x64xf32> -> tensor<?x64xf32>
  %qn = moe.rms_norm %qa, %norm eps 1.0e-6 : tensor<?x64xf32>, tensor<64xf32> -> tensor<?x64xf32>
  %q = moe.linear %qn, %wqb : tensor<?x64xf32>, tensor<96x64xf32> -> tensor<?x96xf32>
  %qh = moe.reshape %q : tensor<?x96xf32> -> tensor<?x2x48xf32>
  %q0, %q1 = moe.split %qh : tensor<?x2x48xf32> -> tensor<?x2x32xf32>, tensor<?x2x16xf32>
  %qr = moe.rope %q1 at %p by #rope : tensor<?x2x16xf32>, tensor<?xi32> -> tensor<?x2x16xf32>
  %kv = moe.linear %n, %wkv : tensor<?x64xf32>, tensor<48x64xf32> -> tensor<?x48xf32>
  %c, %k = moe.split %kv : tensor<?x48xf32> -> tensor<?x32xf32>, tensor<?x16xf32>
  %a = moe.mla_attention @kv query(%q0, %qr) entry(%c, %k) up(%wuk, %wuv) at(%p, %s) scale 1.0
      : (tensor<?x2x32xf32>, tensor<?x2x16xf32>, tensor<?x32xf32>, tensor<?x16xf32>, tensor<2x32x32xbf16>, tensor<2x32x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x32xf32>
  %ar = moe.reshape %a : tensor<?x2x32xf32> -> tensor<?x64xf32>
  %x1 = moe.linear %ar, %wo add %x : tensor<?x64xf32> : tensor<?x64xf32>, tensor<64x64xf32> -> tensor<?x64xf32>
  %l = moe.linear %x1, %wr : tensor<?x64xf32>, tensor<4x64xf32> -> tensor<?x4xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %y = moe.experts %x1 route(%w, %e) ffn(%we, %we, %wd)
      : tensor<?x64xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x32x64xf32>, tensor<4x32x64xf32>, tensor<4x64x32xf32> -> tensor<?x64xf32>
  %h = moe.gate_up %x1, %wsg, %wsu : tensor<?x64xf32>, tensor<32x64xf32>, tensor<32x64xf32> -> tensor<?x32xf32>
  %z = moe.linear %h, %wsd add %y : tensor<?x64xf32> : tensor<?x32xf32>, tensor<64x32xbf16> -> tensor<?x64xf32>
  %r = moe.gather_rows %z[%rows] : tensor<?x64xf32>, tensor<?xi32> -> tensor<?x64xf32>
  %rn = moe.rms_norm %r, %norm eps 1.0e-6 : tensor<?x64xf32>, tensor<64xf32> -> tensor<?x64xf32>
  %logits = moe.linear %rn, %wh : tensor<?x64xf32>, tensor<8x64xf32> -> tensor<?x8xf32>
  return %logits : tensor<?x8xf32>
}

// -----

// Tied embeddings: only the projection to logits gets the format.
// CHECK-LABEL: @tied
//   CHECK-DAG: %[[TABLE:.+]] = moe.weight ["t"] : tensor<8x64xf32>
//   CHECK-DAG: %[[HEAD:.+]] = moe.weight ["t"] recipe [#moe.cast<f16>] : tensor<8x64xf16>
//       CHECK: moe.embed %{{.+}} in %[[TABLE]]
//       CHECK: moe.linear %{{.+}}, %[[HEAD]]
func.func @tied(%tokens: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x8xf32> {
  %t = moe.weight ["t"] : tensor<8x64xf32>
  %x = moe.embed %tokens in %t : tensor<?xi32>, tensor<8x64xf32> -> tensor<?x64xf32>
  %r = moe.gather_rows %x[%rows] : tensor<?x64xf32>, tensor<?xi32> -> tensor<?x64xf32>
  %l = moe.linear %r, %t : tensor<?x64xf32>, tensor<8x64xf32> -> tensor<?x8xf32>
  return %l : tensor<?x8xf32>
}

// -----

func.func @part_of_a_group(%x: tensor<?x48xf32>, %w: tensor<?x1xf32>, %e: tensor<?x1xi32>) -> tensor<?x48xf32> {
  // expected-error@+1 {{of "{e}.g" has rows of 48, which are no whole groups of 32}}
  %g = moe.weight ["{e}.g"] recipe [#moe.stack<2>] : tensor<2x8x48xf32>
  %d = moe.weight ["{e}.d"] recipe [#moe.stack<2>] : tensor<2x48x8xf32>
  %y = moe.experts %x route(%w, %e) ffn(%g, %g, %d)
      : tensor<?x48xf32>, tensor<?x1xf32>, tensor<?x1xi32>, tensor<2x8x48xf32>, tensor<2x8x48xf32>, tensor<2x48x8xf32> -> tensor<?x48xf32>
  return %y : tensor<?x48xf32>
}
