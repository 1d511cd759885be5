// RUN: moe-opt %s -split-input-file -verify-diagnostics

// weight C1
// expected-error@+1 {{has no sources}}
exec.weight @w [] recipe [] : memref<4xf32>

// -----

// weight C2: dynamic
// expected-error@+1 {{has type 'memref<?xf32>', expected a dense static memref of f32, f16, bf16, f8E4M3FN, i32 or i8}}
exec.weight @w ["a"] recipe [] : memref<?xf32>

// -----

// weight C2: strided
// expected-error@+1 {{has type 'memref<4xf32, strided<[2]>>', expected a dense static memref}}
exec.weight @w ["a"] recipe [] : memref<4xf32, strided<[2]>>

// -----

// weight C2: f64
// expected-error@+1 {{has type 'memref<4xf64>', expected a dense static memref}}
exec.weight @w ["a"] recipe [] : memref<4xf64>

// -----

// cache C1
// expected-error@+1 {{has elements of 'i32', expected f32, f16, bf16 or i8}}
exec.cache @kv width 16 of i32

// -----

// cache C2: bytes of nothing
// expected-error@+1 {{has elements of 'i8' and no codes}}
exec.cache @kv width 16 of i8

// -----

// cache C2: codes among elements
// expected-error@+1 {{has elements of 'bf16' and codes}}
exec.cache @kv width 16 of bf16 codes "int8"

// -----

// cache C2: a name
// expected-error@+1 {{has codes "int4", expected "int8" or "fp8"}}
exec.cache @kv width 16 of i8 codes "int4"

// -----

// cache width
// expected-error@+1 {{attribute 'width' failed to satisfy constraint}}
exec.cache @kv width 0 of f32

// -----

// kernel C1
// expected-error@+1 {{has an empty kind}}
exec.kernel @k "" {}

// -----

// weight_ref C1: nothing
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{names @w, which is no exec.weight}}
  %w = exec.weight_ref @w : memref<4xf32>
}

// -----

// weight_ref C1: another type
// expected-note@+1 {{weight is here}}
exec.weight @w ["a"] recipe [] : memref<4xf32>
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{has type 'memref<8xf32>', but the weight has 'memref<4xf32>'}}
  %w = exec.weight_ref @w : memref<8xf32>
}

// -----

// cache_ref C1: nothing
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{names @kv, which is no exec.cache}}
  %c = exec.cache_ref @kv : memref<?x64x16xf32>
}

// -----

// cache_ref C1: another type
// expected-note@+1 {{cache is here}}
exec.cache @kv width 16 of f32
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{has type 'memref<?x32x16xf32>', but the pages of the cache are 'memref<?x64x16xf32>'}}
  %c = exec.cache_ref @kv : memref<?x32x16xf32>
}

// -----

// program C1: number
// expected-error@+1 {{has 2 arguments, expected tokens, positions, slots, rows, page_table and logits}}
exec.program @step(%tokens: memref<?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {}

// -----

// program C1: page table
// expected-error@+1 {{has 'page_table' of type 'memref<?xi32>', expected memref<?x?xi32>}}
exec.program @step(%a: memref<?xi32>, %b: memref<?xi32>, %c: memref<?xi32>, %d: memref<?xi32>, %e: memref<?xi32>, %f: memref<?x8xf32>) max_tokens 16 {}

// -----

// program C1: list
// expected-error@+1 {{has 'slots' of type 'memref<?xi64>', expected memref<?xi32>}}
exec.program @step(%a: memref<?xi32>, %b: memref<?xi32>, %c: memref<?xi64>, %d: memref<?xi32>, %e: memref<?x?xi32>, %f: memref<?x8xf32>) max_tokens 16 {}

// -----

// program C1: logits
// expected-error@+1 {{has 'logits' of type 'memref<?x?xf32>', expected memref<?xVxf32>}}
exec.program @step(%a: memref<?xi32>, %b: memref<?xi32>, %c: memref<?xi32>, %d: memref<?xi32>, %e: memref<?x?xi32>, %f: memref<?x?xf32>) max_tokens 16 {}

// -----

// program C2
// expected-error@+1 {{has max_tokens 1048577, at most 1048576 is possible}}
exec.program @step(%a: memref<?xi32>, %b: memref<?xi32>, %c: memref<?xi32>, %d: memref<?xi32>, %e: memref<?x?xi32>, %f: memref<?x8xf32>) max_tokens 1048577 {}

// -----

// program C3
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{'arith.constant' op does not belong in an exec.program}}
  %0 = arith.constant 1 : i32
}

// -----

// program C4: no offset
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 attributes {arena_bytes = 1024} {
  // expected-error@+1 {{has no offset in a program with a memory plan}}
  %0 = exec.buffer : memref<?x8xf32>
}

// -----

// program C4: too large
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 attributes {arena_bytes = 1024} {
  // expected-error@+1 {{at offset 576 does not fit into the arena of 1024 bytes}}
  %0 = exec.buffer {offset = 576} : memref<?x8xf32>
}

// -----

// program C4: sizes beyond 64 bits
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 attributes {arena_bytes = 1024} {
  // expected-error@+1 {{at offset 0 does not fit into the arena of 1024 bytes}}
  %0 = exec.buffer {offset = 0} : memref<?x9000000000000000000xf32>
}

// -----

// buffer outside of a program
// expected-error@+1 {{expects parent op 'exec.program'}}
%0 = exec.buffer : memref<?x8xf32>

// -----

// buffer C1: second dimension
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{has type 'memref<?x?xf32>', expected a dense memref of f32, bf16, i32 or i8 that is static after the first dimension}}
  %0 = exec.buffer : memref<?x?xf32>
}

// -----

// buffer C1: element
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{has type 'memref<?x8xf16>', expected a dense memref of f32, bf16, i32 or i8}}
  %0 = exec.buffer : memref<?x8xf16>
}

// -----

// buffer C2: rows_per_token
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{of 'memref<8xf32>' has no leading '?' that rows_per_token could count}}
  %0 = exec.buffer {rows_per_token = 2} : memref<8xf32>
}

// -----

// buffer C2: per_row
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{of 'memref<8xf32>' has no leading '?' that per_row could count}}
  %0 = exec.buffer {per_row} : memref<8xf32>
}

// -----

// buffer C3
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{has offset 32, expected a multiple of 64}}
  %0 = exec.buffer {offset = 32} : memref<?xf32>
}

// -----

// view C1: element
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{turns elements of 'f32' into 'i32'}}
  %v = exec.view %x : memref<?x64xf32> to memref<?x64xi32>
}

// -----

// view C1: dynamic stride
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{needs static strides and offset, found 'memref<?x8xf32, strided<[?, 1]>>'}}
  %v = exec.view %x : memref<?x64xf32> to memref<?x8xf32, strided<[?, 1]>>
}

// -----

// view C1: dynamic offset
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{needs static strides and offset, found}}
  %v = exec.view %x : memref<?x64xf32> to memref<?x8xf32, strided<[64, 1], offset: ?>>
}

// -----

// view C2: rows
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{changes the distance of rows}}
  %v = exec.view %x : memref<?x64xf32> to memref<?x8xf32>
}

// -----

// view C2: one element
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{changes the distance of rows}}
  %v = exec.view %x : memref<?x64xf32> to memref<1x64xf32>
}

// -----

// view C3: past the end
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{reaches elements 60 to 67 of a row, but the source has 0 to 63}}
  %v = exec.view %x : memref<?x64xf32> to memref<?x8xf32, strided<[64, 1], offset: 60>>
}

// -----

// view C3: before a view
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  %v = exec.view %x : memref<?x64xf32> to memref<?x8xf32, strided<[64, 1], offset: 8>>
  // expected-error@+1 {{reaches elements 0 to 7 of a row, but the source has 8 to 15}}
  %u = exec.view %v : memref<?x8xf32, strided<[64, 1], offset: 8>> to memref<?x8xf32, strided<[64, 1]>>
}

// -----

// launch C1
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{names @k, which is no exec.kernel}}
  exec.launch @k(%x) grid affine_map<(T, R) -> (T)> writes [0] : memref<?x64xf32>
}

// -----

// launch C2: (T) -> (T)
exec.kernel @k "add" {}
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{expected results of (T, R)}}
  exec.launch @k(%x) grid affine_map<(T) -> (T)> writes [0] : memref<?x64xf32>
}

// -----

// launch C2: (T, R)[s] -> (T)
exec.kernel @k "add" {}
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{expected results of (T, R)}}
  exec.launch @k(%x) grid affine_map<(T, R)[s] -> (T)> writes [0] : memref<?x64xf32>
}

// -----

// launch C2: (T, R) -> ()
exec.kernel @k "add" {}
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{expected results of (T, R)}}
  exec.launch @k(%x) grid affine_map<(T, R) -> ()> writes [0] : memref<?x64xf32>
}

// -----

// launch C3: [1]
exec.kernel @k "add" {}
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{expected ascending positions of its 1 arguments}}
  exec.launch @k(%x) grid affine_map<(T, R) -> (T)> writes [1] : memref<?x64xf32>
}

// -----

// launch C3: [0, 0]
exec.kernel @k "add" {}
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{expected ascending positions of its 1 arguments}}
  exec.launch @k(%x) grid affine_map<(T, R) -> (T)> writes [0, 0] : memref<?x64xf32>
}

// -----

// launch C3: [-1]
exec.kernel @k "add" {}
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %x = exec.buffer : memref<?x64xf32>
  // expected-error@+1 {{expected ascending positions of its 1 arguments}}
  exec.launch @k(%x) grid affine_map<(T, R) -> (T)> writes [-1] : memref<?x64xf32>
}

// -----

// launch C3: input
exec.kernel @k "add" {}
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{writes argument 0, which is an input of the program}}
  exec.launch @k(%tokens) grid affine_map<(T, R) -> (T)> writes [0] : memref<?xi32>
}

// -----

// launch C3: weight
exec.kernel @k "add" {}
exec.weight @w ["a"] recipe [] : memref<4x4xf32>
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  %w = exec.weight_ref @w : memref<4x4xf32>
  %v = exec.view %w : memref<4x4xf32> to memref<2x4xf32>
  // expected-error@+1 {{writes argument 0, which is a weight}}
  exec.launch @k(%v) grid affine_map<(T, R) -> (T)> writes [0] : memref<2x4xf32>
}

// -----

// launch C4
exec.kernel @k "add" {}
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{has both run_from and run_below}}
  exec.launch @k(%logits) grid affine_map<(T, R) -> (T)> writes [0] {run_from = 2 : i64, run_below = 2 : i64}
    : memref<?x8xf32>
}

// -----

// launch C4: positive
exec.kernel @k "add" {}
exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>, %rows: memref<?xi32>,
                   %pages: memref<?x?xi32>, %logits: memref<?x8xf32>) max_tokens 16 {
  // expected-error@+1 {{attribute 'run_from' failed to satisfy constraint: 64-bit signless integer attribute whose value is positive}}
  exec.launch @k(%logits) grid affine_map<(T, R) -> (T)> writes [0] {run_from = 0 : i64} : memref<?x8xf32>
}
