// RUN: moe-opt %s -split-input-file -pass-pipeline='builtin.module(func.func(moe-quantize{experts=int8 dense=fp8 rounding=feedback}))' | FileCheck %s
// RUN: moe-opt %s -split-input-file -pass-pipeline='builtin.module(func.func(moe-quantize{experts=int4 overrides="[.][13][.]w=f32"}))' | FileCheck %s --check-prefix=SPLIT
// RUN: not moe-opt %s -split-input-file -pass-pipeline='builtin.module(func.func(moe-quantize{overrides="nothing=int4"}))' 2>&1 | FileCheck %s --check-prefix=UNUSED
// RUN: not moe-opt %s -split-input-file -pass-pipeline='builtin.module(func.func(moe-quantize{overrides="g[.]2=int4"}))' 2>&1 | FileCheck %s --check-prefix=PAIR
// RUN: not moe-opt %s -split-input-file -pass-pipeline='builtin.module(func.func(moe-quantize{rounding=up}))' 2>&1 | FileCheck %s --check-prefix=ROUNDING

// UNUSED: no weight matches the regular expression 'nothing'
// PAIR: 'moe.experts' op would have gate and up of expert 2 in two formats, but they need one
// ROUNDING: unknown rounding 'up', expected nearest, importance or feedback

// The router reads what it read; experts and dense layers each read rounded rows, once for all that ask for the same.
// CHECK-LABEL: @activations
//   CHECK-DAG: %[[X8:.+]] = moe.fake_quantize %arg0 : tensor<?x64xf32> to #moe.quantize<int8, group = 64, scale = f32>
//   CHECK-DAG: %[[XF:.+]] = moe.fake_quantize %arg0 : tensor<?x64xf32> to #moe.quantize<f8e4m3, group = 128, scale = f32>
//   CHECK-NOT: moe.fake_quantize %arg0
//       CHECK: moe.linear %arg0, %{{.+}} : tensor<?x64xf32>, tensor<4x64xf32>
//       CHECK: moe.experts %[[X8]] route(%{{.+}}, %{{.+}}) ffn(%{{.+}}, %{{.+}}, %{{.+}}) {activations = #moe.quantize<int8, group = 32, scale = f32>}
//       CHECK: moe.linear %[[XF]]
//       CHECK: moe.linear %[[XF]]
//       CHECK: %[[H:.+]] = moe.swiglu
//       CHECK: %[[HF:.+]] = moe.fake_quantize %[[H]] : tensor<?x32xf32> to #moe.quantize<f8e4m3, group = 128, scale = f32>
//       CHECK: moe.linear %[[HF]]

// Experts of two formats become two ops whose sums add up; the order of formats is that of the first expert of each.
// SPLIT-LABEL: @activations
//   SPLIT-DAG: %[[G4:.+]] = moe.weight ["g.{e}.w"] recipe [#moe.stack<[0, 2]>, #moe.quantize<int4, group = 32, scale = f16>] : tensor<2x32x64xf32>
//   SPLIT-DAG: %[[G8:.+]] = moe.weight ["g.{e}.w"] recipe [#moe.stack<[1, 3]>] : tensor<2x32x64xf32>
//       SPLIT: %[[SUM:.+]] = moe.experts %arg0 {{.*}} members [0, 2]
//       SPLIT: moe.experts %{{.+}} members [1, 3] add %[[SUM]]
func.func @activations(%x: tensor<?x64xf32>) -> (tensor<?x64xf32>, tensor<?x64xf32>) {
  %wr = moe.weight ["r"] : tensor<4x64xf32>
  %we = moe.weight ["g.{e}.w"] recipe [#moe.stack<4>] : tensor<4x32x64xf32>
  %wu = moe.weight ["u.{e}.w"] recipe [#moe.stack<4>] : tensor<4x32x64xf32>
  %wd = moe.weight ["d.{e}.w"] recipe [#moe.stack<4>] : tensor<4x64x32xf32>
  %wsg = moe.weight ["sg"] : tensor<32x64xf32>
  %wsu = moe.weight ["su"] : tensor<32x64xf32>
  %wsd = moe.weight ["sd"] : tensor<64x32xf32>
  %l = moe.linear %x, %wr : tensor<?x64xf32>, tensor<4x64xf32> -> tensor<?x4xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %y = moe.experts %x route(%w, %e) ffn(%we, %wu, %wd)
      : tensor<?x64xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x32x64xf32>, tensor<4x32x64xf32>, tensor<4x64x32xf32> -> tensor<?x64xf32>
  %g = moe.linear %x, %wsg : tensor<?x64xf32>, tensor<32x64xf32> -> tensor<?x32xf32>
  %u = moe.linear %x, %wsu : tensor<?x64xf32>, tensor<32x64xf32> -> tensor<?x32xf32>
  %h = moe.swiglu %g, %u : tensor<?x32xf32>
  %z = moe.linear %h, %wsd : tensor<?x32xf32>, tensor<64x32xf32> -> tensor<?x64xf32>
  return %y, %z : tensor<?x64xf32>, tensor<?x64xf32>
}
