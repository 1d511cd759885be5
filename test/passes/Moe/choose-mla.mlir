// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-choose-mla))' | FileCheck %s --check-prefixes=CHECK,AUTO
// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-choose-mla{mla=absorbed}))' | FileCheck %s --check-prefixes=CHECK,ABSORBED
// RUN: moe-opt %s -pass-pipeline='builtin.module(func.func(moe-choose-mla{mla=expanded}))' | FileCheck %s --check-prefixes=CHECK,EXPANDED
// RUN: not moe-opt %s -pass-pipeline='builtin.module(func.func(moe-choose-mla{mla=both}))' 2>&1 | FileCheck %s --check-prefix=BAD
// BAD: mla is 'both', expected auto, absorbed or expanded

moe.cache @kv.0 width 576
moe.cache @kv.1 width 40

// DeepSeek's widths: 512 * (128 + 128) / (2 * 512 - 128 - 128) = 170.7.
// CHECK-LABEL: @deepseek
// AUTO: scale 2.500000e-01 expanded_from 171 :
// ABSORBED: scale 2.500000e-01 :
// EXPANDED: scale 2.500000e-01 expanded_from 1 :
func.func @deepseek(%q: tensor<?x16x128xf32>, %qr: tensor<?x16x64xf32>, %c: tensor<?x512xf32>, %kr: tensor<?x64xf32>,
    %uk: tensor<16x128x512xbf16>, %uv: tensor<16x128x512xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) -> tensor<?x16x128xf32> {
  %o = moe.mla_attention @kv.0 query(%q, %qr) entry(%c, %kr) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x16x128xf32>, tensor<?x16x64xf32>, tensor<?x512xf32>, tensor<?x64xf32>, tensor<16x128x512xbf16>,
         tensor<16x128x512xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x16x128xf32>
  return %o : tensor<?x16x128xf32>
}

// Keys and values as wide as two latents: the expanded form never gains, and an earlier choice is taken back.
// CHECK-LABEL: @no_gain
// AUTO: scale 2.500000e-01 :
// ABSORBED: scale 2.500000e-01 :
// EXPANDED: scale 2.500000e-01 expanded_from 1 :
func.func @no_gain(%q: tensor<?x4x40xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %kr: tensor<?x8xf32>,
    %uk: tensor<4x40x32xbf16>, %uv: tensor<4x24x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) -> tensor<?x4x24xf32> {
  %o = moe.mla_attention @kv.1 query(%q, %qr) entry(%c, %kr) up(%uk, %uv) at(%p, %s) scale 0.25 expanded_from 7
      : (tensor<?x4x40xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>, tensor<4x40x32xbf16>,
         tensor<4x24x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x24xf32>
  return %o : tensor<?x4x24xf32>
}
