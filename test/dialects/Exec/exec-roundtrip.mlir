// RUN: moe-opt %s | moe-opt | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt | FileCheck %s

// CHECK: #[[TOKENS:.+]] = affine_map<(d0, d1) -> (d0)>
// CHECK: #[[EXPERTS:.+]] = affine_map<(d0, d1) -> (24, d0 * 6)>

// CHECK: exec.cache @kv.0 width 80 of bf16
exec.cache @kv.0 width 80 of bf16
// CHECK: exec.cache @kv.1 width 656 of i8 codes "fp8"
exec.cache @kv.1 width 656 of i8 codes "fp8"
// CHECK: exec.weight @norm ["model.norm.weight"] recipe [#moe.cast<f32>] : memref<256xf32>
exec.weight @norm ["model.norm.weight"] recipe [#moe.cast<f32>] : memref<256xf32>
// CHECK: exec.kernel @dispatch_e16_top4 "dispatch" {experts = 16 : i64, members = array<i64>, rows = "T", topk = 4 : i64}
exec.kernel @dispatch_e16_top4 "dispatch" {experts = 16 : i64, members = array<i64>, rows = "T", topk = 4 : i64}

// CHECK: exec.program @step(%[[A:.+]]: memref<?xi32>, %{{.+}}: memref<?xi32>, %{{.+}}: memref<?xi32>, %{{.+}}: memref<?xi32>, %{{.+}}: memref<?x?xi32>, %[[L:.+]]: memref<?x100xf32>) max_tokens 512 attributes {arena_bytes = 1048576 : i64} {
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x100xf32>) max_tokens 512
                   attributes {arena_bytes = 1048576 : i64} {
  // CHECK: exec.weight_ref @norm : memref<256xf32>
  %w = exec.weight_ref @norm : memref<256xf32>
  // CHECK: exec.cache_ref @kv.0 : memref<?x64x80xbf16>
  %c = exec.cache_ref @kv.0 : memref<?x64x80xbf16>
  // CHECK: %[[X:.+]] = exec.buffer {offset = 0 : i64} : memref<?x64xf32>
  %x = exec.buffer {offset = 0} : memref<?x64xf32>
  // CHECK: exec.buffer {offset = 131200 : i64, rows_per_token = 4 : i64} : memref<?xi32>
  %order = exec.buffer {offset = 131200, rows_per_token = 4} : memref<?xi32>
  // CHECK: exec.buffer {offset = 139520 : i64, per_row} : memref<?x8xf32>
  %r = exec.buffer {offset = 139520, per_row} : memref<?x8xf32>
  // CHECK: exec.buffer {offset = 196608 : i64} : memref<17xi32>
  %offsets = exec.buffer {offset = 196608} : memref<17xi32>
  // CHECK: %[[H:.+]] = exec.view %[[X]] : memref<?x64xf32> to memref<?x4x16xf32>
  %heads = exec.view %x : memref<?x64xf32> to memref<?x4x16xf32>
  // CHECK: %[[V:.+]] = exec.view %[[H]] : memref<?x4x16xf32> to memref<?x4x4xf32, strided<[64, 16, 1], offset: 12>>
  %tail = exec.view %heads : memref<?x4x16xf32> to memref<?x4x4xf32, strided<[64, 16, 1], offset: 12>>
  // CHECK: exec.launch @dispatch_e16_top4(%[[A]], %[[V]]) grid #[[TOKENS]] writes [1] {label = "a"} : memref<?xi32>, memref<?x4x4xf32, strided<[64, 16, 1], offset: 12>>
  exec.launch @dispatch_e16_top4(%tokens, %tail) grid affine_map<(T, R) -> (T)> writes [1] {label = "a"}
    : memref<?xi32>, memref<?x4x4xf32, strided<[64, 16, 1], offset: 12>>
  // CHECK: exec.launch @dispatch_e16_top4(%[[X]], %[[L]]) grid #[[EXPERTS]] writes [0, 1] : memref<?x64xf32>, memref<?x100xf32>
  exec.launch @dispatch_e16_top4(%x, %logits) grid affine_map<(T, R) -> (24, T * 6)> writes [0, 1]
    : memref<?x64xf32>, memref<?x100xf32>
  // CHECK: exec.launch @dispatch_e16_top4(%[[X]]) grid #[[TOKENS]] writes [0] {run_from = 64 : i64} : memref<?x64xf32>
  exec.launch @dispatch_e16_top4(%x) grid affine_map<(T, R) -> (T)> writes [0] {run_from = 64 : i64} : memref<?x64xf32>
  // CHECK: exec.launch @dispatch_e16_top4(%[[X]]) grid #[[TOKENS]] writes [0] {run_below = 64 : i64} : memref<?x64xf32>
  exec.launch @dispatch_e16_top4(%x) grid affine_map<(T, R) -> (T)> writes [0] {run_below = 64 : i64} : memref<?x64xf32>
}
