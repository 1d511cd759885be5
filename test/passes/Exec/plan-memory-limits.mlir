// RUN: moe-opt %s -pass-pipeline='builtin.module(exec.program(exec-plan-memory))' -verify-diagnostics

exec.kernel @k "any" {}
exec.program @huge(%t: memref<?xi32>, %p: memref<?xi32>, %s: memref<?xi32>, %r: memref<?xi32>, %pt: memref<?x?xi32>,
                   %l: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{is larger than 70368744177664 bytes for 16 tokens}}
  %a = exec.buffer : memref<?x9000000000000000000xf32>
  exec.launch @k(%a, %l) grid affine_map<(T, R) -> (T)> writes [1]
    : memref<?x9000000000000000000xf32>, memref<?x8xf32>
}
