// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-join-shared-expert))' | FileCheck %s

// A shared expert as wide as two routed ones: its gate and up are cut by rows, its down by columns.
// CHECK-LABEL: @twice_as_wide
//  CHECK-SAME: %[[X:.+]]: tensor<?x16xf32>, %[[L:.+]]: tensor<?x4xf32>
//       CHECK: %[[W:.+]], %[[E:.+]] = moe.route
//   CHECK-DAG: %[[G:.+]] = moe.weight ["e.{e}.gate", "s.gate"] recipe [#moe.stack<4>, #moe.append<rows, 2>] : tensor<6x8x16xbf16>
//   CHECK-DAG: %[[U:.+]] = moe.weight ["e.{e}.up", "s.up"] recipe [#moe.stack<4>, #moe.append<rows, 2>] : tensor<6x8x16xbf16>
//   CHECK-DAG: %[[D:.+]] = moe.weight ["e.{e}.down", "s.down"] recipe [#moe.stack<4>, #moe.append<columns, 2>] : tensor<6x16x8xbf16>
//   CHECK-NOT: moe.weight
//   CHECK-NOT: moe.gate_up
//       CHECK: %[[Y:.+]] = moe.experts %[[X]] route(%[[W]], %[[E]]) ffn(%[[G]], %[[U]], %[[D]]) shared 2 :
//  CHECK-NEXT: return %[[Y]]
func.func @twice_as_wide(%x: tensor<?x16xf32>, %l: tensor<?x4xf32>) -> tensor<?x16xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.gate"] recipe [#moe.stack<4>] : tensor<4x8x16xbf16>
  %U = moe.weight ["e.{e}.up"] recipe [#moe.stack<4>] : tensor<4x8x16xbf16>
  %D = moe.weight ["e.{e}.down"] recipe [#moe.stack<4>] : tensor<4x16x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %U, %D) : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x16xbf16>, tensor<4x8x16xbf16>, tensor<4x16x8xbf16> -> tensor<?x16xf32>
  %g = moe.weight ["s.gate"] : tensor<16x16xbf16>
  %u = moe.weight ["s.up"] : tensor<16x16xbf16>
  %d = moe.weight ["s.down"] : tensor<16x16xbf16>
  %h = moe.gate_up %x, %g, %u : tensor<?x16xf32>, tensor<16x16xbf16>, tensor<16x16xbf16> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<16x16xbf16> -> tensor<?x16xf32>
  %z = moe.add %y, %s : tensor<?x16xf32>
  return %z : tensor<?x16xf32>
}

// The other order, FP8 blocks as DeepSeek-V3 stores them, then codes of one kind; activations are rounded on both
// sides, and the experts have a residual, which is added last.
// CHECK-LABEL: @stored_and_rounded
//   CHECK-DAG: moe.weight ["e.{e}.gate", "e.{e}.gs", "s.gate", "s.gs"] recipe [#moe.dequant<fp8 16x16, f32>, #moe.stack<4>, #moe.append<rows, 1>, #moe.quantize<int8, group = 16, scale = f32>] : tensor<5x32x16xf32>
//   CHECK-DAG: moe.weight ["e.{e}.down", "e.{e}.ds", "s.down", "s.ds"] recipe [#moe.dequant<fp8 16x16, f32>, #moe.stack<4>, #moe.append<columns, 1>, #moe.quantize<int8, group = 32, scale = f32>] : tensor<5x16x32xf32>
//       CHECK: moe.experts {{.*}} shared 1 add %{{.+}} : tensor<?x16xf32> {activations = #moe.quantize<int8, group = 32, scale = f32>}
//   CHECK-NOT: moe.add
func.func @stored_and_rounded(%x: tensor<?x16xf32>, %r: tensor<?x16xf32>, %l: tensor<?x4xf32>) -> tensor<?x16xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %q = moe.fake_quantize %x : tensor<?x16xf32> to #moe.quantize<int8, group = 16, scale = f32>
  %G = moe.weight ["e.{e}.gate", "e.{e}.gs"] recipe [#moe.dequant<fp8 16x16, f32>, #moe.stack<4>, #moe.quantize<int8, group = 16, scale = f32>] : tensor<4x32x16xf32>
  %D = moe.weight ["e.{e}.down", "e.{e}.ds"] recipe [#moe.dequant<fp8 16x16, f32>, #moe.stack<4>, #moe.quantize<int8, group = 32, scale = f32>] : tensor<4x16x32xf32>
  %y = moe.experts %q route(%w, %e) ffn(%G, %G, %D) add %r : tensor<?x16xf32> {activations = #moe.quantize<int8, group = 32, scale = f32>}
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x32x16xf32>, tensor<4x32x16xf32>, tensor<4x16x32xf32> -> tensor<?x16xf32>
  %g = moe.weight ["s.gate", "s.gs"] recipe [#moe.dequant<fp8 16x16, f32>, #moe.quantize<int8, group = 16, scale = f32>] : tensor<32x16xf32>
  %d = moe.weight ["s.down", "s.ds"] recipe [#moe.dequant<fp8 16x16, f32>, #moe.quantize<int8, group = 32, scale = f32>] : tensor<16x32xf32>
  %h = moe.gate_up %q, %g, %g : tensor<?x16xf32>, tensor<32x16xf32>, tensor<32x16xf32> -> tensor<?x32xf32>
  %hq = moe.fake_quantize %h : tensor<?x32xf32> to #moe.quantize<int8, group = 32, scale = f32>
  %s = moe.linear %hq, %d : tensor<?x32xf32>, tensor<16x32xf32> -> tensor<?x16xf32>
  %z = moe.add %s, %y : tensor<?x16xf32>
  return %z : tensor<?x16xf32>
}

// One and a half times as wide.
// CHECK-LABEL: @no_multiple
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @no_multiple(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<12x32xbf16>
  %d = moe.weight ["s.d"] : tensor<32x12xbf16>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<12x32xbf16>, tensor<12x32xbf16> -> tensor<?x12xf32>
  %s = moe.linear %h, %d : tensor<?x12xf32>, tensor<32x12xbf16> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// Both read something else.
// CHECK-LABEL: @another_input
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @another_input(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xbf16>
  %d = moe.weight ["s.d"] : tensor<32x16xbf16>
  %h = moe.gate_up %o, %g, %g : tensor<?x32xf32>, tensor<16x32xbf16>, tensor<16x32xbf16> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xbf16> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// The shared expert is stored in f32.
// CHECK-LABEL: @another_type
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @another_type(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xf32>
  %d = moe.weight ["s.d"] : tensor<32x16xf32>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xf32>, tensor<16x32xf32> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xf32> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// The routed experts alone have codes.
// CHECK-LABEL: @another_format
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @another_format(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>, #moe.quantize<int8, group = 32, scale = f32>] : tensor<4x8x32xf32>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xf32>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xf32>, tensor<4x8x32xf32>, tensor<4x32x8xf32> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xf32>
  %d = moe.weight ["s.d"] : tensor<32x16xf32>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xf32>, tensor<16x32xf32> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xf32> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// Blocks of 16 rows of the shared gate hold rows of two slices.
// CHECK-LABEL: @cut_within_blocks
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @cut_within_blocks(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>, #moe.quantize<f8e4m3, group = 128, scale = f32 rows 16>] : tensor<4x8x32xf32>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>, #moe.quantize<f8e4m3, group = 128, scale = f32 rows 16>] : tensor<4x32x8xf32>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xf32>, tensor<4x8x32xf32>, tensor<4x32x8xf32> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] recipe [#moe.quantize<f8e4m3, group = 128, scale = f32 rows 16>] : tensor<16x32xf32>
  %d = moe.weight ["s.d"] recipe [#moe.quantize<f8e4m3, group = 128, scale = f32 rows 16>] : tensor<32x16xf32>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xf32>, tensor<16x32xf32> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xf32> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// A group of the shared down holds columns of two slices.
// CHECK-LABEL: @cut_within_groups
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @cut_within_groups(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xf32>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>, #moe.quantize<int8, group = 16, scale = f32>] : tensor<4x32x8xf32>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xf32>, tensor<4x8x32xf32>, tensor<4x32x8xf32> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xf32>
  %d = moe.weight ["s.d"] recipe [#moe.quantize<int8, group = 16, scale = f32>] : tensor<32x16xf32>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xf32>, tensor<16x32xf32> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xf32> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// The largest element of the whole weight scales each of its groups.
// CHECK-LABEL: @one_scale_for_all
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @one_scale_for_all(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>, #moe.quantize<f4e2m1, group = 16, scale = f8E4M3FN>] : tensor<4x32x32xf32>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>, #moe.quantize<f4e2m1, group = 16, scale = f8E4M3FN>] : tensor<4x32x32xf32>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x32x32xf32>, tensor<4x32x32xf32>, tensor<4x32x32xf32> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] recipe [#moe.quantize<f4e2m1, group = 16, scale = f8E4M3FN>] : tensor<64x32xf32>
  %d = moe.weight ["s.d"] recipe [#moe.quantize<f4e2m1, group = 16, scale = f8E4M3FN>] : tensor<32x64xf32>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<64x32xf32>, tensor<64x32xf32> -> tensor<?x64xf32>
  %s = moe.linear %h, %d : tensor<?x64xf32>, tensor<32x64xf32> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// A calibration knows the inputs of the whole weight.
// CHECK-LABEL: @calibrated
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @calibrated(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 32, scale = f16 rounding feedback>] : tensor<4x32x32xf32>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 32, scale = f16 rounding feedback>] : tensor<4x32x32xf32>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x32x32xf32>, tensor<4x32x32xf32>, tensor<4x32x32xf32> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] recipe [#moe.quantize<int4, group = 32, scale = f16 rounding feedback>] : tensor<32x32xf32>
  %d = moe.weight ["s.d"] recipe [#moe.quantize<int4, group = 32, scale = f16 rounding feedback>] : tensor<32x32xf32>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<32x32xf32>, tensor<32x32xf32> -> tensor<?x32xf32>
  %s = moe.linear %h, %d : tensor<?x32xf32>, tensor<32x32xf32> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// FP8 blocks of 16 columns of the shared down lie in two slices.
// CHECK-LABEL: @stored_across_slices
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @stored_across_slices(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d", "e.{e}.ds"] recipe [#moe.dequant<fp8 16x16, bf16>, #moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xbf16>
  %d = moe.weight ["s.d", "s.ds"] recipe [#moe.dequant<fp8 16x16, bf16>] : tensor<32x16xbf16>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xbf16>, tensor<16x32xbf16> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xbf16> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// The shared expert alone rounds what its down projection reads.
// CHECK-LABEL: @rounds_otherwise
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @rounds_otherwise(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xbf16>
  %d = moe.weight ["s.d"] : tensor<32x16xbf16>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xbf16>, tensor<16x32xbf16> -> tensor<?x16xf32>
  %hq = moe.fake_quantize %h : tensor<?x16xf32> to #moe.quantize<int8, group = 16, scale = f32>
  %s = moe.linear %hq, %d : tensor<?x16xf32>, tensor<32x16xbf16> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// The shared expert adds something itself.
// CHECK-LABEL: @adds_a_residual
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @adds_a_residual(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xbf16>
  %d = moe.weight ["s.d"] : tensor<32x16xbf16>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xbf16>, tensor<16x32xbf16> -> tensor<?x16xf32>
  %s = moe.linear %h, %d add %o : tensor<?x32xf32> : tensor<?x16xf32>, tensor<32x16xbf16> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}

// Its hidden values are read by another op.
// CHECK-LABEL: @another_reader
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @another_reader(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xbf16>
  %d = moe.weight ["s.d"] : tensor<32x16xbf16>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xbf16>, tensor<16x32xbf16> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xbf16> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  %again = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xbf16> -> tensor<?x32xf32>
  %zz = moe.add %z, %again : tensor<?x32xf32>
  return %zz : tensor<?x32xf32>
}

// Two ops follow one choice; only one could have the shared expert among its experts.
// CHECK-LABEL: @choice_read_again
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @choice_read_again(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %y2 = moe.experts %o route(%w, %e) ffn(%G, %G, %D) : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xbf16>
  %d = moe.weight ["s.d"] : tensor<32x16xbf16>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xbf16>, tensor<16x32xbf16> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xbf16> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  %zz = moe.add %z, %y2 : tensor<?x32xf32>
  return %zz : tensor<?x32xf32>
}

// Experts in several formats are a chain of sums.
// CHECK-LABEL: @members
//   CHECK-NOT: moe.append
//       CHECK: moe.experts
//   CHECK-NOT: shared
//       CHECK: moe.gate_up
//       CHECK: moe.add
func.func @members(%x: tensor<?x32xf32>, %o: tensor<?x32xf32>, %l: tensor<?x4xf32>) -> tensor<?x32xf32> {
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %G = moe.weight ["e.{e}.g"] recipe [#moe.stack<4>] : tensor<4x8x32xbf16>
  %D = moe.weight ["e.{e}.d"] recipe [#moe.stack<4>] : tensor<4x32x8xbf16>
  %y = moe.experts %x route(%w, %e) ffn(%G, %G, %D) members [0, 2, 5, 7] : tensor<?x32xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x8x32xbf16>, tensor<4x8x32xbf16>, tensor<4x32x8xbf16> -> tensor<?x32xf32>
  %g = moe.weight ["s.g"] : tensor<16x32xbf16>
  %d = moe.weight ["s.d"] : tensor<32x16xbf16>
  %h = moe.gate_up %x, %g, %g : tensor<?x32xf32>, tensor<16x32xbf16>, tensor<16x32xbf16> -> tensor<?x16xf32>
  %s = moe.linear %h, %d : tensor<?x16xf32>, tensor<32x16xbf16> -> tensor<?x32xf32>
  %z = moe.add %y, %s : tensor<?x32xf32>
  return %z : tensor<?x32xf32>
}
