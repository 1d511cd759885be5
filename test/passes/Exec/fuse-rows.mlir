// RUN: moe-opt %s -exec-fuse-rows | FileCheck %s
// RUN: moe-opt %s -exec-fuse-rows -o %t
// RUN: moe-opt %t -exec-fuse-rows | diff %t -

// One kernel for both launches of the same parts; @norm and @cast are launched no more, @add still is.
// CHECK-NOT: @norm
// CHECK: exec.kernel @rms_norm_d64_and_cast_rows_bf16_d64 "rows" {parts = [
// CHECK-SAME: {kind = "rms_norm", spec = {eps = {{.*}}, out_stride = 64 : i64, rows = "T", weight = true, width = 64 : i64, x_stride = 64 : i64}},
// CHECK-SAME: {kind = "cast_rows", spec = {
exec.kernel @norm "rms_norm" {eps = 1.0e-06, out_stride = 64 : i64, rows = "T", weight = true, width = 64 : i64, x_stride = 64 : i64}
// CHECK-NOT: @cast "
exec.kernel @cast "cast_rows" {out_stride = 64 : i64, rows = "T", rows_per_token = 1 : i64, to = "bf16",
                               width = 64 : i64, x_stride = 64 : i64}
exec.kernel @cast_rows "cast_rows" {out_stride = 64 : i64, rows = "R", rows_per_token = 1 : i64, to = "bf16",
                                    width = 64 : i64, x_stride = 64 : i64}
exec.kernel @gather "gather_rows" {out_stride = 64 : i64, width = 64 : i64, x_stride = 64 : i64}
exec.kernel @dispatch "dispatch" {experts = 4 : i64, members = array<i64>, rows = "T", topk = 2 : i64}
// CHECK: exec.kernel @add "elementwise"
exec.kernel @add "elementwise" {a_stride = 64 : i64, b_stride = 64 : i64, out_stride = 64 : i64, rows = "T",
                                swiglu = false, width = 64 : i64}
exec.weight @g ["g"] recipe [] : memref<64xf32>

// A launch moves up past one that it shares nothing with that either writes.
// CHECK-LABEL: exec.program @joins
exec.program @joins(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>, %pt: memref<?x?xi32>,
                    %l: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  %g = exec.weight_ref @g : memref<64xf32>
  %h = exec.buffer : memref<?x64xf32>
  exec.launch @norm(%x, %g, %h) grid affine_map<(T, R) -> (T)> writes [2] {label = "norm"}
    : memref<?x64xf32>, memref<64xf32>, memref<?x64xf32>
  // CHECK: exec.launch @rms_norm_d64_and_cast_rows_bf16_d64(%[[X:.*]], %[[G:.*]], %[[H:.*]], %[[H]], %[[C:[^)]*]])
  // CHECK-SAME: grid #{{.*}} writes [2, 4] {label = "norm + cast"}
  // CHECK: exec.launch @dispatch
  %chosen = exec.buffer : memref<?x2xi32>
  %offsets = exec.buffer : memref<5xi32>
  %active = exec.buffer : memref<5xi32>
  %order = exec.buffer {rows_per_token = 2 : i64} : memref<?xi32>
  exec.launch @dispatch(%chosen, %offsets, %active, %order) grid affine_map<(T, R) -> (1)> writes [1, 2, 3]
    : memref<?x2xi32>, memref<5xi32>, memref<5xi32>, memref<?xi32>
  %c = exec.buffer : memref<?x64xbf16>
  exec.launch @cast(%h, %c) grid affine_map<(T, R) -> (T)> writes [1] {label = "cast"}
    : memref<?x64xf32>, memref<?x64xbf16>
  // CHECK-NOT: exec.launch
  // CHECK: }
}

// CHECK-LABEL: exec.program @joins_again
exec.program @joins_again(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                          %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  %g = exec.weight_ref @g : memref<64xf32>
  %h = exec.buffer : memref<?x64xf32>
  %c = exec.buffer : memref<?x64xbf16>
  // CHECK: exec.launch @rms_norm_d64_and_cast_rows_bf16_d64(
  exec.launch @norm(%x, %g, %h) grid affine_map<(T, R) -> (T)> writes [2]
    : memref<?x64xf32>, memref<64xf32>, memref<?x64xf32>
  exec.launch @cast(%h, %c) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>, memref<?x64xbf16>
}

// The near miss: a launch between them makes what the last one reads, and rows are counted otherwise before it.
// CHECK-LABEL: exec.program @other_rows
exec.program @other_rows(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                          %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 16 {
  %a = exec.buffer : memref<?x64xf32>
  %b = exec.buffer : memref<?x64xf32>
  %c = exec.buffer {per_row} : memref<?x64xf32>
  %d = exec.buffer {per_row} : memref<?x64xbf16>
  // CHECK: exec.launch @add(
  exec.launch @add(%a, %a, %b) grid affine_map<(T, R) -> (T)> writes [2]
    : memref<?x64xf32>, memref<?x64xf32>, memref<?x64xf32>
  // CHECK: exec.launch @gather(
  exec.launch @gather(%b, %r, %c) grid affine_map<(T, R) -> (R)> writes [2]
    : memref<?x64xf32>, memref<?xi32>, memref<?x64xf32>
  // CHECK: exec.launch @cast_rows(
  exec.launch @cast_rows(%c, %d) grid affine_map<(T, R) -> (R)> writes [1] : memref<?x64xf32>, memref<?x64xbf16>
}

// The near miss: all tasks have the one row that both launches share.
// CHECK-LABEL: exec.program @no_rows
exec.program @no_rows(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                          %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 16 {
  %a = exec.buffer : memref<?x64xf32>
  %one = exec.buffer : memref<1x64xf32>
  // CHECK: exec.launch @add(
  exec.launch @add(%a, %a, %one) grid affine_map<(T, R) -> (T)> writes [2]
    : memref<?x64xf32>, memref<?x64xf32>, memref<1x64xf32>
  // CHECK: exec.launch @add(
  exec.launch @add(%one, %one, %a) grid affine_map<(T, R) -> (T)> writes [2]
    : memref<1x64xf32>, memref<1x64xf32>, memref<?x64xf32>
}

// The near miss: not all steps have both.
// CHECK-LABEL: exec.program @some_steps
exec.program @some_steps(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                          %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 16 {
  %a = exec.buffer : memref<?x64xf32>
  // CHECK: exec.launch @add(
  exec.launch @add(%a, %a, %a) grid affine_map<(T, R) -> (T)> writes [2]
    : memref<?x64xf32>, memref<?x64xf32>, memref<?x64xf32>
  // CHECK: exec.launch @add(
  exec.launch @add(%a, %a, %a) grid affine_map<(T, R) -> (T)> writes [2] {run_from = 2 : i64}
    : memref<?x64xf32>, memref<?x64xf32>, memref<?x64xf32>
}
