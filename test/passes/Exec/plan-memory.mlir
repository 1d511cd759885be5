// RUN: moe-opt %s -pass-pipeline='builtin.module(exec.program(exec-plan-memory))' | FileCheck %s
// RUN: moe-opt %s -pass-pipeline='builtin.module(exec.program(exec-plan-memory))' -o %t
// RUN: moe-opt %t -pass-pipeline='builtin.module(exec.program(exec-plan-memory))' | diff %t -

exec.kernel @k "any" {}

// A chain: the third buffer takes the place of the first, whose life has ended. Sizes are
// 16 * 64 * 4 + 128 = 4224 bytes.
// CHECK-LABEL: exec.program @chain
// CHECK-SAME: attributes {arena_bytes = 8448 : i64}
exec.program @chain(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>, %pt: memref<?x?xi32>,
                    %l: memref<?x8xf32>) max_tokens 16 {
  // CHECK: exec.buffer {offset = 0 : i64}
  %a = exec.buffer : memref<?x64xf32>
  // CHECK: exec.buffer {offset = 4224 : i64}
  %b = exec.buffer : memref<?x64xf32>
  // CHECK: exec.buffer {offset = 0 : i64}
  %c = exec.buffer : memref<?x64xf32>
  exec.launch @k(%t, %a) grid affine_map<(T, R) -> (T)> writes [1] : memref<?xi32>, memref<?x64xf32>
  exec.launch @k(%a, %b) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>, memref<?x64xf32>
  exec.launch @k(%b, %c) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>, memref<?x64xf32>
  exec.launch @k(%c, %l) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>, memref<?x8xf32>
}

// The near miss: a view of the first buffer is read together with the third, so nothing is shared.
// CHECK-LABEL: exec.program @view_keeps_alive
// CHECK-SAME: attributes {arena_bytes = 12672 : i64}
exec.program @view_keeps_alive(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>,
                               %pt: memref<?x?xi32>, %l: memref<?x8xf32>) max_tokens 16 {
  // CHECK: exec.buffer {offset = 0 : i64}
  %a = exec.buffer : memref<?x64xf32>
  // CHECK: exec.buffer {offset = 4224 : i64}
  %b = exec.buffer : memref<?x64xf32>
  // CHECK: exec.buffer {offset = 8448 : i64}
  %c = exec.buffer : memref<?x64xf32>
  %v = exec.view %a : memref<?x64xf32> to memref<?x4x16xf32>
  %u = exec.view %v : memref<?x4x16xf32> to memref<?x4x8xf32, strided<[64, 16, 1], offset: 8>>
  exec.launch @k(%t, %a) grid affine_map<(T, R) -> (T)> writes [1] : memref<?xi32>, memref<?x64xf32>
  exec.launch @k(%a, %b) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>, memref<?x64xf32>
  exec.launch @k(%b, %u, %c) grid affine_map<(T, R) -> (T)> writes [2]
    : memref<?x64xf32>, memref<?x4x8xf32, strided<[64, 16, 1], offset: 8>>, memref<?x64xf32>
  exec.launch @k(%c, %l) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>, memref<?x8xf32>
}

// Rows of logits count as tokens do; static buffers and rows_per_token have their own sizes:
// 16 * 4 * 4 + 128 = 384, 16 * 3 * 4 + 128 = 320 and 17 * 4 + 128 -> 256.
// CHECK-LABEL: exec.program @sizes
// CHECK-SAME: attributes {arena_bytes = 960 : i64}
exec.program @sizes(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>, %pt: memref<?x?xi32>,
                    %l: memref<?x8xf32>) max_tokens 16 {
  // CHECK: exec.buffer {offset = 704 : i64} : memref<17xi32>
  %fixed = exec.buffer : memref<17xi32>
  // CHECK: exec.buffer {offset = 384 : i64, rows_per_token = 3 : i64} : memref<?xi32>
  %order = exec.buffer {rows_per_token = 3} : memref<?xi32>
  // CHECK: exec.buffer {offset = 0 : i64, per_row} : memref<?x4xf32>
  %rows = exec.buffer {per_row} : memref<?x4xf32>
  exec.launch @k(%fixed, %order, %rows, %l) grid affine_map<(T, R) -> (T)> writes [3]
    : memref<17xi32>, memref<?xi32>, memref<?x4xf32>, memref<?x8xf32>
}

// A small buffer takes the smallest gap that holds it: 192 bytes fit into the gap of 384 that
// @mid left, not the one of 4224 that @big left.
// CHECK-LABEL: exec.program @best_fit
exec.program @best_fit(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>, %pt: memref<?x?xi32>,
                       %l: memref<?x8xf32>) max_tokens 16 {
  // CHECK: exec.buffer {offset = 0 : i64} : memref<?x64xf32>
  %big = exec.buffer : memref<?x64xf32>
  // CHECK: exec.buffer {offset = 4224 : i64} : memref<?x32xf32>
  %kept = exec.buffer : memref<?x32xf32>
  // CHECK: exec.buffer {offset = 6400 : i64} : memref<?x4xf32>
  %mid = exec.buffer : memref<?x4xf32>
  // CHECK: exec.buffer {offset = 6784 : i64} : memref<?x3xf32>
  %last = exec.buffer : memref<?x3xf32>
  // CHECK: exec.buffer {offset = 6400 : i64} : memref<?xf32>
  %small = exec.buffer : memref<?xf32>
  exec.launch @k(%big, %kept, %mid, %last) grid affine_map<(T, R) -> (T)> writes [0]
    : memref<?x64xf32>, memref<?x32xf32>, memref<?x4xf32>, memref<?x3xf32>
  exec.launch @k(%kept, %last, %small, %l) grid affine_map<(T, R) -> (T)> writes [3]
    : memref<?x32xf32>, memref<?x3xf32>, memref<?xf32>, memref<?x8xf32>
}

// What no launch has takes no memory.
// CHECK-LABEL: exec.program @unused
// CHECK-SAME: attributes {arena_bytes = 0 : i64}
// CHECK-NOT: exec.buffer
exec.program @unused(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>, %pt: memref<?x?xi32>,
                     %l: memref<?x8xf32>) max_tokens 16 {
  %a = exec.buffer : memref<?x64xf32>
  %v = exec.view %a : memref<?x64xf32> to memref<?x4x16xf32>
}

// A kept buffer shares with none, whenever it is used: not with %a, whose life ends before.
// CHECK-LABEL: exec.program @kept
// CHECK-SAME: attributes {arena_bytes = 8640 : i64}
exec.program @kept(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>, %pt: memref<?x?xi32>,
                   %l: memref<?x8xf32>) max_tokens 16 {
  // CHECK: exec.buffer {offset = 0 : i64}
  %a = exec.buffer : memref<?x64xf32>
  // CHECK: exec.buffer {offset = 4224 : i64}
  %b = exec.buffer : memref<?x64xf32>
  // CHECK: exec.buffer {kept, offset = 8448 : i64}
  %c = exec.buffer {kept} : memref<2xi32>
  exec.launch @k(%t, %a) grid affine_map<(T, R) -> (T)> writes [1] : memref<?xi32>, memref<?x64xf32>
  exec.launch @k(%a, %b) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>, memref<?x64xf32>
  exec.launch @k(%b, %l, %c) grid affine_map<(T, R) -> (T)> writes [1, 2]
    : memref<?x64xf32>, memref<?x8xf32>, memref<2xi32>
}
