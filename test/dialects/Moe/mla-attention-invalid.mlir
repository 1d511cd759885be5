// RUN: moe-opt %s -split-input-file -verify-diagnostics

moe.cache @kv width 40
func.func @mla_c1_rope_query(%q: tensor<3x4x16xf32>, %qr: tensor<2x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                             %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op rope_query 'tensor<2x4x8xf32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<3x4x16xf32>, tensor<2x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c1_latent(%q: tensor<3x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<2x32xf32>, %k: tensor<?x8xf32>,
                         %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op latent 'tensor<2x32xf32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<3x4x16xf32>, tensor<?x4x8xf32>, tensor<2x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c1_rope_key(%q: tensor<3x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<2x8xf32>,
                           %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op rope_key 'tensor<2x8xf32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<3x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<2x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c1_positions(%q: tensor<3x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                            %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<2xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op positions 'tensor<2xi32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<3x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<2xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c1_slots(%q: tensor<3x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                        %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<2xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op slots 'tensor<2xi32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<3x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c1_result(%q: tensor<3x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                         %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op result 'tensor<2x4x12xf32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<3x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<2x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c2_rope_query(%q: tensor<?x4x16xf32>, %qr: tensor<?x2x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                             %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op rope_query 'tensor<?x2x8xf32>' has 2 heads, but query 'tensor<?x4x16xf32>' has 4 heads}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x2x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c2_w_uk(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                       %uk: tensor<2x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op w_uk 'tensor<2x16x32xbf16>' has 2 heads, but query 'tensor<?x4x16xf32>' has 4 heads}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<2x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c2_w_uv(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                       %uk: tensor<4x16x32xbf16>, %uv: tensor<2x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op w_uv 'tensor<2x12x32xbf16>' has 2 heads, but query 'tensor<?x4x16xf32>' has 4 heads}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<2x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c2_result(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                         %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op result 'tensor<?x2x12xf32>' has 2 heads, but query 'tensor<?x4x16xf32>' has 4 heads}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c3_w_uk_rows(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                            %uk: tensor<4x12x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op w_uk 'tensor<4x12x32xbf16>' has 12 rows, but query 'tensor<?x4x16xf32>' has 16 channels}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x12x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c3_w_uk_columns(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                               %uk: tensor<4x16x16xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op w_uk 'tensor<4x16x16xbf16>' has 16 columns, but latent 'tensor<?x32xf32>' has 32 channels}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x16xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c3_w_uv_rows(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                            %uk: tensor<4x16x32xbf16>, %uv: tensor<4x16x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op w_uv 'tensor<4x16x32xbf16>' has 16 rows, but result 'tensor<?x4x12xf32>' has 12 channels}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x16x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c3_w_uv_columns(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                               %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x16xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op w_uv 'tensor<4x12x16xbf16>' has 16 columns, but latent 'tensor<?x32xf32>' has 32 channels}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x16xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c4_rope_key(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x4xf32>,
                           %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op rope_key 'tensor<?x4xf32>' has 4 channels, but rope_query 'tensor<?x4x8xf32>' has 8 channels}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x4xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_c5_negative(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                           %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op scale is -1.000000e+00, expected a finite positive number}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale -1.0
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @mla_c6_no_symbol(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                            %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op no symbol @kv is visible here, expected a moe.cache}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

// expected-note@+1 {{defined here}}
func.func private @kv()
func.func @mla_c6_not_a_cache(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                              %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op @kv is a func.func, expected a moe.cache}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

// expected-note@+1 {{defined here}}
moe.cache @kv width 64
func.func @mla_c7_width(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                        %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op stores entries of 40 channels, but cache @kv has width 64}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

// expected-note@+1 {{defined here}}
moe.cache @kv width 40 of #moe.cache_codes<f8e4m3, 40>
func.func @mla_c8_channels(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                           %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.mla_attention' op stores entries whose first part has 32 channels, but cache @kv has codes for 40}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

moe.cache @kv width 40
func.func @mla_expanded_from(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %c: tensor<?x32xf32>, %k: tensor<?x8xf32>,
                             %uk: tensor<4x16x32xbf16>, %uv: tensor<4x12x32xbf16>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{attribute 'expanded_from' failed to satisfy constraint: 64-bit signless integer attribute whose value is positive}}
  %o = moe.mla_attention @kv query(%q, %qr) entry(%c, %k) up(%uk, %uv) at(%p, %s) scale 0.25 expanded_from 0
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x32xf32>, tensor<?x8xf32>,
         tensor<4x16x32xbf16>, tensor<4x12x32xbf16>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}
