// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-trim-rows))' | FileCheck %s

// What a last layer has after its attention: the gather goes up to the attention's result and the residual stream.
// CHECK-LABEL: @layer
//  CHECK-SAME: %[[O:.+]]: tensor<?x4x4xf32>, %[[X:.+]]: tensor<?x16xf32>, %[[ROWS:.+]]: tensor<?xi32>,
//       CHECK: %[[FLAT:.+]] = moe.reshape %[[O]]
//  CHECK-DAG: %[[R:.+]] = moe.gather_rows %[[FLAT]][%[[ROWS]]] : tensor<?x16xf32>, tensor<?xi32> -> tensor<?x16xf32>
//  CHECK-DAG: %[[XR:.+]] = moe.gather_rows %[[X]][%[[ROWS]]]
//   CHECK-NOT: moe.gather_rows
//       CHECK: %[[X1:.+]] = moe.linear %[[R]], %{{.+}} add %[[XR]]
//       CHECK: %[[N:.+]] = moe.rms_norm %[[X1]],
//       CHECK: %[[L:.+]] = moe.linear %[[N]],
//       CHECK: %[[W:.+]], %[[E:.+]] = moe.route softmax topk(2) %[[L]]
//       CHECK: %[[Q:.+]] = moe.fake_quantize %[[N]]
//       CHECK: %[[GU:.+]] = moe.gate_up %[[Q]],
//       CHECK: %[[SHARED:.+]] = moe.linear %[[GU]], %{{.+}} add %[[X1]]
//       CHECK: %[[Y:.+]] = moe.experts %[[Q]] route(%[[W]], %[[E]]) {{.*}} add %[[SHARED]]
//       CHECK: %[[N1:.+]] = moe.rms_norm %[[Y]],
//       CHECK: %[[LOGITS:.+]] = moe.linear %[[N1]],
//       CHECK: return %[[LOGITS]]
func.func @layer(%o: tensor<?x4x4xf32>, %x: tensor<?x16xf32>, %rows: tensor<?xi32>, %w: tensor<16x16xbf16>,
                 %wr: tensor<4x16xbf16>, %g: tensor<16xf32>, %es: tensor<4x16x16xbf16>) -> tensor<?x16xf32> {
  %flat = moe.reshape %o : tensor<?x4x4xf32> -> tensor<?x16xf32>
  %x1 = moe.linear %flat, %w add %x : tensor<?x16xf32> : tensor<?x16xf32>, tensor<16x16xbf16> -> tensor<?x16xf32>
  %n = moe.rms_norm %x1, %g eps 1.0e-06 : tensor<?x16xf32>, tensor<16xf32> -> tensor<?x16xf32>
  %l = moe.linear %n, %wr : tensor<?x16xf32>, tensor<4x16xbf16> -> tensor<?x4xf32>
  %rw, %re = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %q = moe.fake_quantize %n : tensor<?x16xf32> to #moe.quantize<int8, group = 16, scale = f32>
  %gu = moe.gate_up %q, %w, %w : tensor<?x16xf32>, tensor<16x16xbf16>, tensor<16x16xbf16> -> tensor<?x16xf32>
  %shared = moe.linear %gu, %w add %x1 : tensor<?x16xf32> : tensor<?x16xf32>, tensor<16x16xbf16> -> tensor<?x16xf32>
  %y = moe.experts %q route(%rw, %re) ffn(%es, %es, %es) add %shared : tensor<?x16xf32>
      : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x16x16xbf16>, tensor<4x16x16xbf16>,
        tensor<4x16x16xbf16> -> tensor<?x16xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x16xf32>, tensor<?xi32> -> tensor<?x16xf32>
  %n1 = moe.rms_norm %r, %g eps 1.0e-06 : tensor<?x16xf32>, tensor<16xf32> -> tensor<?x16xf32>
  %logits = moe.linear %n1, %w : tensor<?x16xf32>, tensor<16x16xbf16> -> tensor<?x16xf32>
  return %logits : tensor<?x16xf32>
}

// The plain form, with rows of a known number: sums, parts and heads move, and every type follows.
// CHECK-LABEL: @plain_form
//  CHECK-SAME: %[[X:.+]]: tensor<?x8xf32>, %[[ROWS:.+]]: tensor<3xi32>,
//       CHECK: %[[R:.+]] = moe.gather_rows %[[X]][%[[ROWS]]] : tensor<?x8xf32>, tensor<3xi32> -> tensor<3x8xf32>
//       CHECK: %[[P:.+]] = moe.linear %[[R]], %{{.+}} : tensor<3x8xf32>, tensor<16x8xbf16> -> tensor<3x16xf32>
//       CHECK: %[[H:.+]] = moe.reshape %[[P]] : tensor<3x16xf32> -> tensor<3x2x8xf32>
//       CHECK: %[[AB:.+]]:2 = moe.split %[[H]] : tensor<3x2x8xf32> -> tensor<3x2x4xf32>, tensor<3x2x4xf32>
//  CHECK-DAG: %[[A:.+]] = moe.reshape %[[AB]]#0 : tensor<3x2x4xf32> -> tensor<3x8xf32>
//  CHECK-DAG: %[[B:.+]] = moe.reshape %[[AB]]#1 : tensor<3x2x4xf32> -> tensor<3x8xf32>
//       CHECK: %[[S:.+]] = moe.swiglu %[[A]], %[[B]] : tensor<3x8xf32>
//       CHECK: %[[Y:.+]] = moe.add %[[R]], %[[S]] : tensor<3x8xf32>
//       CHECK: return %[[Y]]
func.func @plain_form(%x: tensor<?x8xf32>, %rows: tensor<3xi32>, %w: tensor<16x8xbf16>) -> tensor<3x8xf32> {
  %p = moe.linear %x, %w : tensor<?x8xf32>, tensor<16x8xbf16> -> tensor<?x16xf32>
  %h = moe.reshape %p : tensor<?x16xf32> -> tensor<?x2x8xf32>
  %ab:2 = moe.split %h : tensor<?x2x8xf32> -> tensor<?x2x4xf32>, tensor<?x2x4xf32>
  %a = moe.reshape %ab#0 : tensor<?x2x4xf32> -> tensor<?x8xf32>
  %b = moe.reshape %ab#1 : tensor<?x2x4xf32> -> tensor<?x8xf32>
  %s = moe.swiglu %a, %b : tensor<?x8xf32>
  %y = moe.add %x, %s : tensor<?x8xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x8xf32>, tensor<3xi32> -> tensor<3x8xf32>
  return %r : tensor<3x8xf32>
}

// One op of a chain has a reader that wants all rows: those after it move, it and those before do not.
// CHECK-LABEL: @another_reader
//       CHECK: %[[N:.+]] = moe.rms_norm
//       CHECK: %[[M:.+]] = moe.rms_norm %[[N]]
//       CHECK: %[[R:.+]] = moe.gather_rows %[[M]]
//       CHECK: %[[Y:.+]] = moe.rms_norm %[[R]]
//       CHECK: return %[[Y]], %[[M]]
func.func @another_reader(%x: tensor<?x8xf32>, %rows: tensor<?xi32>, %g: tensor<8xf32>)
    -> (tensor<?x8xf32>, tensor<?x8xf32>) {
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  %m = moe.rms_norm %n, %g eps 1.0e-06 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  %y = moe.rms_norm %m, %g eps 1.0e-06 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  %r = moe.gather_rows %y[%rows] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %r, %m : tensor<?x8xf32>, tensor<?x8xf32>
}

// A cache takes all rows of one part; rotations are not moved over.
// CHECK-LABEL: @before_the_cache
//       CHECK: %[[N:.+]] = moe.rms_norm
//       CHECK: %[[K:.+]] = moe.rope %[[N]]
//       CHECK: moe.cache_append @kv(%[[N]], %[[K]])
//       CHECK: %[[R:.+]] = moe.gather_rows %[[N]]
//       CHECK: return %[[R]]
#rope = #moe.rope<factor = 1.0, inv_freq = [1.0, 0.1]>
moe.cache @kv width 8
func.func @before_the_cache(%x: tensor<?x4xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>, %rows: tensor<?xi32>,
                            %g: tensor<4xf32>) -> tensor<?x4xf32> {
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x4xf32>, tensor<4xf32> -> tensor<?x4xf32>
  %k = moe.rope %n at %p by #rope : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32>
  %c:4 = moe.cache_append @kv(%n, %k) at %p, %s : (tensor<?x4xf32>, tensor<?x4xf32>), tensor<?xi32>, tensor<?xi32>
    -> (tensor<?x4xf32>, tensor<?x4xf32>), tensor<?xi32>, tensor<?xi32>
  %r = moe.gather_rows %n[%rows] : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32>
  return %r : tensor<?x4xf32>
}

// Rows asked for twice are two gathers; what both read is computed for all rows.
// CHECK-LABEL: @two_sets_of_rows
//  CHECK-SAME: %[[X:.+]]: tensor<?x8xf32>, %[[A:.+]]: tensor<?xi32>, %[[B:.+]]: tensor<?xi32>
//       CHECK: %[[N:.+]] = moe.rms_norm %[[X]]
//  CHECK-DAG: moe.gather_rows %[[N]][%[[A]]]
//  CHECK-DAG: moe.gather_rows %[[N]][%[[B]]]
func.func @two_sets_of_rows(%x: tensor<?x8xf32>, %a: tensor<?xi32>, %b: tensor<?xi32>, %g: tensor<8xf32>)
    -> (tensor<?x8xf32>, tensor<?x8xf32>) {
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  %r = moe.gather_rows %n[%a] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  %q = moe.gather_rows %n[%b] : tensor<?x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %r, %q : tensor<?x8xf32>, tensor<?x8xf32>
}

// No gather takes rows of choices: experts whose choices come from elsewhere stay, what is after them moves.
// CHECK-LABEL: @given_choices
//       CHECK: %[[Y:.+]] = moe.experts
//       CHECK: %[[R:.+]] = moe.gather_rows %[[Y]]
//       CHECK: moe.rms_norm %[[R]]
func.func @given_choices(%x: tensor<?x16xf32>, %rows: tensor<?xi32>, %g: tensor<16xf32>, %w: tensor<?x2xf32>,
                         %e: tensor<?x2xi32>, %es: tensor<4x16x16xbf16>) -> tensor<?x16xf32> {
  %y = moe.experts %x route(%w, %e) ffn(%es, %es, %es) : tensor<?x16xf32>, tensor<?x2xf32>, tensor<?x2xi32>,
      tensor<4x16x16xbf16>, tensor<4x16x16xbf16>, tensor<4x16x16xbf16> -> tensor<?x16xf32>
  %n = moe.rms_norm %y, %g eps 1.0e-06 : tensor<?x16xf32>, tensor<16xf32> -> tensor<?x16xf32>
  %r = moe.gather_rows %n[%rows] : tensor<?x16xf32>, tensor<?xi32> -> tensor<?x16xf32>
  return %r : tensor<?x16xf32>
}

// The result is a weight too: that use needs all of it.
// CHECK-LABEL: @as_a_weight
//       CHECK: moe.rms_norm %{{.+}}, %{{.+}} : tensor<8x8xf32>
//       CHECK: moe.gather_rows
func.func @as_a_weight(%x: tensor<8x8xf32>, %rows: tensor<?xi32>, %g: tensor<8xf32>)
    -> (tensor<?x8xf32>, tensor<8x8xf32>) {
  %n = moe.rms_norm %x, %g eps 1.0e-06 : tensor<8x8xf32>, tensor<8xf32> -> tensor<8x8xf32>
  %y = moe.linear %x, %n : tensor<8x8xf32>, tensor<8x8xf32> -> tensor<8x8xf32>
  %r = moe.gather_rows %n[%rows] : tensor<8x8xf32>, tensor<?xi32> -> tensor<?x8xf32>
  return %r, %y : tensor<?x8xf32>, tensor<8x8xf32>
}

// A view at the upper end is as cheap for all rows, and the gather copies less after it.
// CHECK-LABEL: @view
//       CHECK: %[[P:.+]]:2 = moe.split
//       CHECK: moe.gather_rows %[[P]]#0
func.func @view(%x: tensor<?x8xf32>, %rows: tensor<?xi32>) -> tensor<?x4xf32> {
  %p:2 = moe.split %x : tensor<?x8xf32> -> tensor<?x4xf32>, tensor<?x4xf32>
  %r = moe.gather_rows %p#0[%rows] : tensor<?x4xf32>, tensor<?xi32> -> tensor<?x4xf32>
  return %r : tensor<?x4xf32>
}
