// RUN: moe-opt %s -split-input-file -verify-diagnostics

func.func @attention_c1_rope_query(%q: tensor<3x4x16xf32>, %qr: tensor<2x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                                   %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op rope_query 'tensor<2x4x8xf32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<3x4x16xf32>, tensor<2x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c1_positions(%q: tensor<3x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                                  %p: tensor<2xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op positions 'tensor<2xi32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<3x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<2xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c1_slots(%q: tensor<3x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                              %p: tensor<?xi32>, %s: tensor<2xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op slots 'tensor<2xi32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<3x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<2xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c1_result(%q: tensor<3x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                               %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op result 'tensor<2x4x12xf32>' has 2 tokens, but query 'tensor<3x4x16xf32>' has 3 tokens}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<3x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<2x4x12xf32>
  return
}

// -----

func.func @attention_c2_rope_query(%q: tensor<?x4x16xf32>, %qr: tensor<?x2x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                                   %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op rope_query 'tensor<?x2x8xf32>' has 2 heads, but query 'tensor<?x4x16xf32>' has 4 heads}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x2x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c2_key(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x2x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                            %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op key 'tensor<?x2x16xf32>' has 2 heads, but query 'tensor<?x4x16xf32>' has 4 heads}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x2x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c2_value(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x2x12xf32>,
                              %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op value 'tensor<?x2x12xf32>' has 2 heads, but query 'tensor<?x4x16xf32>' has 4 heads}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x2x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c2_result(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                               %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op result 'tensor<?x2x12xf32>' has 2 heads, but query 'tensor<?x4x16xf32>' has 4 heads}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x2x12xf32>
  return
}

// -----

func.func @attention_c3_rope_key(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<6x4x16xf32>, %kr: tensor<5x8xf32>, %v: tensor<?x4x12xf32>,
                                 %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op rope_key 'tensor<5x8xf32>' has 5 entries, but key 'tensor<6x4x16xf32>' has 6 entries}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<6x4x16xf32>, tensor<5x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c3_value(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<6x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<5x4x12xf32>,
                              %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op value 'tensor<5x4x12xf32>' has 5 entries, but key 'tensor<6x4x16xf32>' has 6 entries}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<6x4x16xf32>, tensor<?x8xf32>, tensor<5x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c3_context_positions(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<6x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                                          %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<5xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op context_positions 'tensor<5xi32>' has 5 entries, but key 'tensor<6x4x16xf32>' has 6 entries}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<6x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<5xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c3_context_slots(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<6x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                                      %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<5xi32>) {
  // expected-error@+1 {{'moe.attention' op context_slots 'tensor<5xi32>' has 5 entries, but key 'tensor<6x4x16xf32>' has 6 entries}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<6x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<5xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c4_key(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x8xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                            %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op key 'tensor<?x4x8xf32>' has 8 channels, but query 'tensor<?x4x16xf32>' has 16 channels}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x8xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c4_rope_key(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x4xf32>, %v: tensor<?x4x12xf32>,
                                 %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op rope_key 'tensor<?x4xf32>' has 4 channels, but rope_query 'tensor<?x4x8xf32>' has 8 channels}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x4xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c4_result(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                               %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op result 'tensor<?x4x16xf32>' has 16 channels, but value 'tensor<?x4x12xf32>' has 12 channels}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.25
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x16xf32>
  return
}

// -----

func.func @attention_c5_zero(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                             %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op scale is 0.000000e+00, expected a finite positive number}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0.0
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}

// -----

func.func @attention_c5_infinity(%q: tensor<?x4x16xf32>, %qr: tensor<?x4x8xf32>, %k: tensor<?x4x16xf32>, %kr: tensor<?x8xf32>, %v: tensor<?x4x12xf32>,
                                 %p: tensor<?xi32>, %s: tensor<?xi32>, %cp: tensor<?xi32>, %cs: tensor<?xi32>) {
  // expected-error@+1 {{'moe.attention' op scale is INF, expected a finite positive number}}
  %o = moe.attention query(%q, %qr) key(%k, %kr) value(%v) at(%p, %s) context(%cp, %cs) scale 0x7FF0000000000000
      : (tensor<?x4x16xf32>, tensor<?x4x8xf32>, tensor<?x4x16xf32>, tensor<?x8xf32>, tensor<?x4x12xf32>,
         tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x4x12xf32>
  return
}
