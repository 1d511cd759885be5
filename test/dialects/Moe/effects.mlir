// RUN: moe-opt %s -canonicalize -cse | FileCheck %s

moe.cache @a width 8
moe.cache @b width 8

// What gives values only goes when nobody uses it, and is there once.
// CHECK-LABEL: @values
//       CHECK: moe.weight
//   CHECK-NOT: moe.weight
//       CHECK: moe.linear
//   CHECK-NOT: moe.linear
//       CHECK: return
func.func @values(%x: tensor<?x8xf32>) -> (tensor<?x4xf32>, tensor<?x4xf32>) {
  %w0 = moe.weight ["w"] : tensor<4x8xbf16>
  %w1 = moe.weight ["w"] : tensor<4x8xbf16>
  %0 = moe.linear %x, %w0 : tensor<?x8xf32>, tensor<4x8xbf16> -> tensor<?x4xf32>
  %1 = moe.linear %x, %w1 : tensor<?x8xf32>, tensor<4x8xbf16> -> tensor<?x4xf32>
  %2 = moe.add %0, %1 : tensor<?x4xf32>
  return %0, %1 : tensor<?x4xf32>, tensor<?x4xf32>
}

// What stores stays, in number and order, whether its results are used or not.
// CHECK-LABEL: @stores
//       CHECK: moe.cache_append @a
//       CHECK: moe.cache_append @a
//       CHECK: moe.cache_append @b
//       CHECK: moe.mla_attention @b
//       CHECK: return
func.func @stores(%c: tensor<?x8xf32>, %l: tensor<?x6xf32>, %k: tensor<?x2xf32>, %q: tensor<?x1x3xf32>,
                  %qr: tensor<?x1x2xf32>, %uk: tensor<1x3x6xbf16>, %uv: tensor<1x5x6xbf16>, %p: tensor<?xi32>,
                  %s: tensor<?xi32>) {
  %0, %1, %2 = moe.cache_append @a(%c) at %p, %s : (tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
      -> (tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %3, %4, %5 = moe.cache_append @a(%c) at %p, %s : (tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
      -> (tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %6, %7, %8 = moe.cache_append @b(%c) at %p, %s : (tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
      -> (tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %9 = moe.mla_attention @b query(%q, %qr) entry(%l, %k) up(%uk, %uv) at(%p, %s) scale 1.0
      : (tensor<?x1x3xf32>, tensor<?x1x2xf32>, tensor<?x6xf32>, tensor<?x2xf32>, tensor<1x3x6xbf16>,
         tensor<1x5x6xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x1x5xf32>
  return
}
