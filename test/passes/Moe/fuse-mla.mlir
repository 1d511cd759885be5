// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-fuse-mla))' | FileCheck %s

moe.cache @kv.0 width 40
moe.cache @kv.1 width 40

// CHECK-LABEL: @fuse(
//  CHECK-SAME: %[[QN:.+]]: tensor<?x4x16xf32>, %[[QR:.+]]: tensor<?x4x8xf32>, %[[C:.+]]: tensor<?x32xf32>, %[[KR:.+]]: tensor<?x8xf32>, %[[P:.+]]: tensor<?xi32>, %[[S:.+]]: tensor<?xi32>)
//   CHECK-DAG: %[[UK:.+]] = moe.weight ["layers.0.kv_b_proj.weight"] recipe [#moe.head_rows<4, 0, 16>] : tensor<4x16x32xbf16>
//   CHECK-DAG: %[[UV:.+]] = moe.weight ["layers.0.kv_b_proj.weight"] recipe [#moe.head_rows<4, 16, 28>] : tensor<4x12x32xbf16>
//  CHECK-NEXT: %[[O:.+]] = moe.mla_attention @kv.0 query(%[[QN]], %[[QR]]) entry(%[[C]], %[[KR]]) up(%[[UK]], %[[UV]]) at(%[[P]], %[[S]]) scale 2.500000e-01 :
//  CHECK-NEXT: return %[[O]]
func.func @fuse(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// CHECK-LABEL: @keeps_recipe_and_used_weight(
//       CHECK: %[[KV:.+]] = moe.weight ["w", "s"] recipe [#moe.dequant<fp8 128x128, bf16>] : tensor<112x32xbf16>
//   CHECK-DAG: moe.weight ["w", "s"] recipe [#moe.dequant<fp8 128x128, bf16>, #moe.head_rows<4, 0, 16>] : tensor<4x16x32xbf16>
//   CHECK-DAG: moe.weight ["w", "s"] recipe [#moe.dequant<fp8 128x128, bf16>, #moe.head_rows<4, 16, 28>] : tensor<4x12x32xbf16>
//       CHECK: %[[O:.+]] = moe.mla_attention
//       CHECK: return %[[O]], %[[KV]]
func.func @keeps_recipe_and_used_weight(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> (tensor<?x4x12xf32>, tensor<112x32xbf16>) {
  %kv_b = moe.weight ["w", "s"] recipe [#moe.dequant<fp8 128x128, bf16>] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o, %kv_b : tensor<?x4x12xf32>, tensor<112x32xbf16>
}

// CHECK-LABEL: @another_cache_between(
//       CHECK: moe.cache_append @kv.1
//       CHECK: moe.mla_attention @kv.0
func.func @another_cache_between(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %other:2, %op, %os = moe.cache_append @kv.1(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: the cache is stored to before the attention would store.
// CHECK-LABEL: @same_cache_between(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @same_cache_between(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %other:2, %op, %os = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: a call may do anything to the cache.
// CHECK-LABEL: @unknown_between(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @unknown_between(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  call @anything() : () -> ()
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: the latents of the context are asked for.
// CHECK-LABEL: @latents_used(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @latents_used(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> (tensor<?x4x12xf32>, tensor<?x32xf32>) {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o, %ctx#0 : tensor<?x4x12xf32>, tensor<?x32xf32>
}

// Near miss: the positions of the context are asked for.
// CHECK-LABEL: @positions_used(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @positions_used(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> (tensor<?x4x12xf32>, tensor<?xi32>) {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o, %cp : tensor<?x4x12xf32>, tensor<?xi32>
}

// Near miss: the values are asked for.
// CHECK-LABEL: @values_used(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @values_used(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> (tensor<?x4x12xf32>, tensor<?x4x12xf32>) {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o, %v : tensor<?x4x12xf32>, tensor<?x4x12xf32>
}

// Near miss: kv_b is not a moe.weight, so there is no recipe to extend.
// CHECK-LABEL: @up_projection_from_outside(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @up_projection_from_outside(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>, %kv_b: tensor<112x32xbf16>)
    -> tensor<?x4x12xf32> {
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: each head holds its value rows before its key rows.
// CHECK-LABEL: @values_first(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @values_first(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %v, %kn = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x12xf32>, tensor<?x4x16xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: the key rows of all heads come before the value rows.
// CHECK-LABEL: @all_keys_first(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @all_keys_first(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %k2, %v2 = moe.split %kv : tensor<?x112xf32> -> tensor<?x64xf32>, tensor<?x48xf32>
  %kn = moe.reshape %k2 : tensor<?x64xf32> -> tensor<?x4x16xf32>
  %v = moe.reshape %v2 : tensor<?x48xf32> -> tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: a head holds a third part.
// CHECK-LABEL: @three_parts(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @three_parts(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<128x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<128x32xbf16> -> tensor<?x128xf32>
  %kv3 = moe.reshape %kv : tensor<?x128xf32> -> tensor<?x4x32xf32>
  %kn, %v, %more = moe.split %kv3 : tensor<?x4x32xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>, tensor<?x4x4xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: the up-projection adds something.
// CHECK-LABEL: @residual(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @residual(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>, %r: tensor<?x112xf32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b add %r : tensor<?x112xf32> : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: the rope key is not that of the context.
// CHECK-LABEL: @other_rope_key(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @other_rope_key(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: the queries are at other positions than the entries that are stored.
// CHECK-LABEL: @other_positions(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @other_positions(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>, %p2: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p2, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

// Near miss: the slots of the context come from elsewhere.
// CHECK-LABEL: @other_context_slots(
//       CHECK: moe.cache_append @kv.0
//   CHECK-NOT: moe.mla_attention
//       CHECK: moe.attention
func.func @other_context_slots(%qn: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %p: tensor<?xi32>, %s: tensor<?xi32>, %s2: tensor<?xi32>)
    -> tensor<?x4x12xf32> {
  %kv_b = moe.weight ["layers.0.kv_b_proj.weight"] : tensor<112x32xbf16>
  %ctx:2, %cp, %cs = moe.cache_append @kv.0(%c, %kr) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  %kv = moe.linear %ctx#0, %kv_b : tensor<?x32xf32>, tensor<112x32xbf16> -> tensor<?x112xf32>
  %kv3 = moe.reshape %kv : tensor<?x112xf32> -> tensor<?x4x28xf32>
  %kn, %v = moe.split %kv3 : tensor<?x4x28xf32> -> tensor<?x4x16xf32>, tensor<?x4x12xf32>
  %o = moe.attention query(%qn, %qr) key(%kn, %ctx#1) value(%v) at(%p, %s) context(%cp, %s2) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return %o : tensor<?x4x12xf32>
}

func.func private @anything()
