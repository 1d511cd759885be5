// The examples of docs/dialects/Exec.md, line by line (docs.test holds them to it), make one module.
// RUN: moe-opt %s | FileCheck %s
// CHECK: exec.program @step

exec.weight @model.norm ["model.norm.weight"] recipe [#moe.cast<f32>] : memref<256xf32>
exec.weight @model.embed_tokens ["model.embed_tokens.weight"] recipe [] : memref<1280x256xbf16>
exec.cache @kv.0 width 80 of f32
exec.cache @kv.1 width 656 of i8 codes "fp8"
exec.kernel @dispatch_e16_top4 "dispatch" {experts = 16 : i64, members = array<i64>, rows = "T", topk = 4 : i64}
exec.kernel @embed_bf16_d256 "embed" {out_stride = 256 : i64, table = "bf16", width = 256 : i64}
exec.kernel @add_d256 "elementwise" {a_stride = 256 : i64, b_stride = 256 : i64, out_stride = 256 : i64, rows = "T", swiglu = false, width = 256 : i64}

exec.program @step(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>,
                   %rows: memref<?xi32>, %pages: memref<?x?xi32>, %logits: memref<?x1280xf32>) max_tokens 512 {
  %table = exec.weight_ref @model.embed_tokens : memref<1280x256xbf16>
  %x = exec.buffer : memref<?x256xf32>
  exec.launch @embed_bf16_d256(%tokens, %table, %x) grid affine_map<(T, R) -> (T)> writes [2] {label = "embed"}
    : memref<?xi32>, memref<1280x256xbf16>, memref<?x256xf32>
}

exec.program @others(%tokens: memref<?xi32>, %positions: memref<?xi32>, %slots: memref<?xi32>,
                     %rows: memref<?xi32>, %pages: memref<?x?xi32>, %logits: memref<?x1280xf32>) max_tokens 512 {
  %w = exec.weight_ref @model.norm : memref<256xf32>
  %c = exec.cache_ref @kv.0 : memref<?x64x80xf32>
  %h = exec.buffer {rows_per_token = 4 : i64} : memref<?x64xf32>
  %q = exec.buffer : memref<?x4x48xf32>
  %rope = exec.view %q : memref<?x4x48xf32> to memref<?x4x16xf32, strided<[192, 48, 1], offset: 32>>
  %a = exec.buffer : memref<?x256xf32>
  %b = exec.buffer : memref<?x256xf32>
  %y = exec.buffer : memref<?x256xf32>
  exec.launch @add_d256(%a, %b, %y) grid affine_map<(T, R) -> (T)> writes [2] {label = "layers.0.add"}
    : memref<?x256xf32>, memref<?x256xf32>, memref<?x256xf32>
}
