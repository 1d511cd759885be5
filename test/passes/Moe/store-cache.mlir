// RUN: split-file %s %t
// RUN: moe-opt %t/caches.mlir -moe-store-cache=format=bf16 | FileCheck %t/caches.mlir --check-prefixes=CHECK,BF16
// RUN: moe-opt %t/caches.mlir -moe-store-cache | FileCheck %t/caches.mlir --check-prefixes=CHECK,F32
// RUN: moe-opt %t/caches.mlir -moe-store-cache=format=int8 | FileCheck %t/caches.mlir --check-prefixes=CHECK,INT8
// RUN: moe-opt %t/caches.mlir -moe-store-cache=format=fp8 | FileCheck %t/caches.mlir --check-prefixes=CHECK,FP8
// RUN: moe-opt %t/caches.mlir -moe-optimize=cache=bf16 | FileCheck %t/caches.mlir --check-prefixes=CHECK,BF16
// RUN: moe-opt %t/caches.mlir -moe-optimize=cache=fp8 | FileCheck %t/caches.mlir --check-prefixes=CHECK,FP8
// RUN: not moe-opt %t/caches.mlir -moe-store-cache=format=fp4 2>&1 | FileCheck %t/caches.mlir --check-prefix=BAD
// RUN: not moe-opt %t/caches.mlir -moe-optimize=cache=fp4 2>&1 | FileCheck %t/caches.mlir --check-prefix=BAD
// RUN: not moe-opt %t/two.mlir -moe-store-cache=format=int8 2>&1 | FileCheck %t/two.mlir
// RUN: moe-opt %t/two.mlir -moe-store-cache=format=bf16 | FileCheck %t/two.mlir --check-prefix=BF16

//--- caches.mlir
// BAD: format of caches is 'fp4', expected one of f32, bf16, int8, fp8

// Nothing tells the latent of a cache that nobody uses: it is not put into codes.
// CHECK: moe.cache @kv.0 width 40
// BF16-SAME: of bf16
// F32-NOT: of
// INT8-NOT: of
// FP8-NOT: of
// CHECK: moe.cache @kv.1 width 40
// BF16-SAME: of bf16
// F32-NOT: of
// INT8-SAME: of #moe.cache_codes<int8, 32>
// FP8-SAME: of #moe.cache_codes<f8e4m3, 32>
// CHECK: moe.cache @kv.2 width 40
// BF16-SAME: of bf16
// F32-NOT: of
// INT8-SAME: of #moe.cache_codes<int8, 24>
// FP8-SAME: of #moe.cache_codes<f8e4m3, 24>
// CHECK: func.func
moe.cache @kv.0 width 40
moe.cache @kv.1 width 40 of bf16
moe.cache @kv.2 width 40 of #moe.cache_codes<int8, 24>
func.func @step(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                %c2: tensor<?x24xf32>, %k2: tensor<?x16xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> (tensor<?x4x12xf32>, tensor<?x24xf32>) {
  %uk = moe.weight ["a"] recipe [#moe.head_rows<4, 0, 16>] : tensor<4x16x32xbf16>
  %uv = moe.weight ["a"] recipe [#moe.head_rows<4, 16, 28>] : tensor<4x12x32xbf16>
  %o = moe.mla_attention @kv.1 query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  %x:2, %xp, %xs = moe.cache_append @kv.2(%c2, %k2) at %p, %s
      : (tensor<?x24xf32>, tensor<?x16xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x24xf32>, tensor<?x16xf32>), tensor<?xi32>, tensor<?xi32>
  return %o, %x#0 : tensor<?x4x12xf32>, tensor<?x24xf32>
}

//--- two.mlir
// CHECK: 'moe.cache_append' op stores latents of {{(32|24)}} channels in @kv, where others store some of {{(32|24)}}
// BF16: moe.cache @kv width 40 of bf16
moe.cache @kv width 40
func.func @step(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %c2: tensor<?x24xf32>, %k2: tensor<?x16xf32>,
                %p: tensor<?xi32>, %s: tensor<?xi32>) {
  %x:2, %xp, %xs = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %y:2, %yp, %ys = moe.cache_append @kv(%c2, %k2) at %p, %s
      : (tensor<?x24xf32>, tensor<?x16xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x24xf32>, tensor<?x16xf32>), tensor<?xi32>, tensor<?xi32>
  return
}
