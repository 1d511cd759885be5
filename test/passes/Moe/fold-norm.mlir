// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fold-norm{experts=int4 attention=int8 dense=f32 overrides=kept=keep}))' \
// RUN:   | FileCheck %s
// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fold-norm))' | FileCheck %s --check-prefix=KEEP
// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fold-norm{experts=int4 attention=int8 dense=f32 rounding=feedback}))' \
// RUN:   | FileCheck %s --check-prefix=CALIBRATED
// RUN: not moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fold-norm{dense=int5}))' 2>&1 | FileCheck %s --check-prefix=FORMAT
// RUN: not moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fold-norm{rounding=up}))' 2>&1 | FileCheck %s --check-prefix=ROUNDING
// FORMAT: error: unknown weight format 'int5'
// ROUNDING: error: unknown rounding 'up', expected nearest, importance or feedback

// All that reads the norm has room for the product: a router that is kept becomes f32; of the experts, whose gate and
// up are one weight here, down reads something else. The weight of the norm is read by nothing any more.
// CHECK-LABEL: @mixture
//  CHECK-SAME: %[[X:.+]]: tensor<?x32xf32>
//   CHECK-NOT: ["g"]
//       CHECK: %[[N:.+]] = moe.rms_norm %[[X]] eps 9.9999999999999995E-7 : tensor<?x32xf32> -> tensor<?x32xf32>
//   CHECK-DAG: %[[R:.+]] = moe.weight ["gate"] recipe [#moe.scale_columns<"g">] : tensor<4x32xf32>
//       CHECK: moe.linear %[[N]], %[[R]] : tensor<?x32xf32>, tensor<4x32xf32>
//   CHECK-DAG: %[[G:.+]] = moe.weight ["e.{e}.g", "e.{e}.s"] recipe [#moe.dequant<fp8 128x128, bf16>, #moe.stack<4>, #moe.scale_columns<"g">] : tensor<4x8x32xf32>
//   CHECK-DAG: %[[D:.+]] = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
//       CHECK: moe.experts %[[N]] route({{.*}}) ffn(%[[G]], %[[G]], %[[D]])
//   CHECK-DAG: %[[S:.+]] = moe.weight ["s.g"] recipe [#moe.scale_columns<"g">] : tensor<8x32xf32>
//   CHECK-DAG: %[[U:.+]] = moe.weight ["s.u"] recipe [#moe.scale_columns<"g">] : tensor<8x32xf32>
//       CHECK: moe.gate_up %[[N]], %[[S]], %[[U]]
//  KEEP-LABEL: @mixture
//    KEEP-NOT: moe.scale_columns
//        KEEP: moe.rms_norm %{{.+}}, %{{.+}} eps
//    KEEP-NOT: moe.scale_columns
//        KEEP: return
// CALIBRATED-LABEL: @mixture
//    CALIBRATED-NOT: moe.scale_columns
//        CALIBRATED: moe.rms_norm %{{.+}}, %{{.+}} eps
//    CALIBRATED-NOT: moe.scale_columns
//        CALIBRATED: return
func.func @mixture(%x: tensor<?x32xf32>) -> (tensor<?x32xf32>, tensor<?x8xf32>) {
  %g = moe.weight ["g"] : tensor<32xbf16>
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xbf16> -> tensor<?x32xf32>
  %r = moe.weight ["gate"] : tensor<4x32xbf16>
  %l = moe.linear %n, %r : tensor<?x32xf32>, tensor<4x32xbf16> -> tensor<?x4xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g", "e.{e}.s"] recipe [#moe.dequant<fp8 128x128, bf16>, #moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %n route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %s = moe.weight ["s.g"] : tensor<8x32xbf16>
  %u = moe.weight ["s.u"] : tensor<8x32xbf16>
  %h = moe.gate_up %n, %s, %u : tensor<?x32xf32>, tensor<8x32xbf16>, tensor<8x32xbf16> -> tensor<?x8xf32>
  return %y, %h : tensor<?x32xf32>, tensor<?x8xf32>
}

// What is f32 is f32 after it, whatever is asked for. Another reader of the weight, and another norm with this one's,
// keep theirs.
// CHECK-LABEL: @shared
//   CHECK-DAG: %[[G:.+]] = moe.weight ["g"] recipe [#moe.cast<f32>] : tensor<32xf32>
//   CHECK-DAG: %[[T:.+]] = moe.weight ["embed"] : tensor<64x32xf32>
//   CHECK-DAG: %[[H:.+]] = moe.weight ["embed"] recipe [#moe.scale_columns<"g">] : tensor<64x32xf32>
//       CHECK: %[[X:.+]] = moe.embed %{{.+}} in %[[T]]
//       CHECK: %[[N:.+]] = moe.rms_norm %[[X]] eps
//       CHECK: moe.linear %[[N]], %[[H]]
//       CHECK: %[[M:.+]] = moe.rms_norm %[[X]], %[[G]] eps
//       CHECK: return {{.*}}, %[[M]] :
//  KEEP-LABEL: @shared
//        KEEP: moe.scale_columns<"g">
//        KEEP: return
// CALIBRATED-LABEL: @shared
//        CALIBRATED: moe.scale_columns<"g">
//        CALIBRATED: return
func.func @shared(%tokens: tensor<?xi32>) -> (tensor<?x64xf32>, tensor<?x32xf32>) {
  %g = moe.weight ["g"] recipe [#moe.cast<f32>] : tensor<32xf32>
  %t = moe.weight ["embed"] : tensor<64x32xf32>
  %x = moe.embed %tokens in %t : tensor<?xi32>, tensor<64x32xf32> -> tensor<?x32xf32>
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xf32> -> tensor<?x32xf32>
  %y = moe.linear %n, %t : tensor<?x32xf32>, tensor<64x32xf32> -> tensor<?x64xf32>
  %m = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x32xf32>, tensor<32xf32> -> tensor<?x32xf32>
  return %y, %m : tensor<?x64xf32>, tensor<?x32xf32>
}
