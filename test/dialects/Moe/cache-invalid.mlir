// RUN: moe-opt %s -split-input-file -verify-diagnostics

// expected-error@+1 {{attribute 'width' failed to satisfy constraint: 64-bit signless integer attribute whose value is positive}}
moe.cache @cache_c1_width width 0

// -----

// expected-error@+1 {{'moe.cache' op has elements of 'f16', expected bf16}}
moe.cache @cache_c2_element width 40 of f16

// -----

// expected-error@+1 {{attribute 'format' failed to satisfy constraint}}
moe.cache @cache_c2_kind width 40 of #moe.cast<bf16>

// -----

// expected-error@+1 {{'moe.cache' op has codes for 48 channels, but entries of 40}}
moe.cache @cache_c3_channels width 40 of #moe.cache_codes<int8, 48>

// -----

// expected-error@+1 {{codes of a cache are int4, expected int8 or f8e4m3}}
moe.cache @codes_c1 width 40 of #moe.cache_codes<int4, 32>

// -----

// expected-error@+1 {{channels is 0, expected a positive number}}
moe.cache @codes_c2 width 40 of #moe.cache_codes<int8, 0>

// -----

moe.cache @kv width 40
func.func @append_c1_no_part(%p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op stores no part, expected one or more}}
  %1, %2 = "moe.cache_append"(%p, %s) {cache = @kv} : (tensor<?xi32>, tensor<?xi32>) -> (tensor<?xi32>, tensor<?xi32>)
  return
}

// -----

moe.cache @kv width 40
func.func @append_c1_number(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op stores 2 parts, but gives 1}}
  %0, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>), tensor<?xi32>, tensor<?xi32>
  return
}

// -----

moe.cache @kv width 40
func.func @append_c1_widths(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op context 'tensor<?x4xf32>' has 4 channels, but part 'tensor<?x8xf32>' has 8 channels}}
  %0:2, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x4xf32>), tensor<?xi32>, tensor<?xi32>
  return
}

// -----

moe.cache @kv width 40
func.func @append_c2_part(%c: tensor<?x32xf32>, %k: tensor<2x8xf32>, %p: tensor<3xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op part 'tensor<2x8xf32>' has 2 tokens, but positions 'tensor<3xi32>' has 3 tokens}}
  %0:2, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<2x8xf32>), tensor<3xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  return
}

// -----

moe.cache @kv width 40
func.func @append_c2_slots(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<3xi32>, %s: tensor<2xi32>) {
  // expected-error@+1 {{'moe.cache_append' op slots 'tensor<2xi32>' has 2 tokens, but positions 'tensor<3xi32>' has 3 tokens}}
  %0:2, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<3xi32>, tensor<2xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  return
}

// -----

moe.cache @kv width 40
func.func @append_c3_context(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op context 'tensor<5x8xf32>' has 5 entries, but context_positions 'tensor<6xi32>' has 6 entries}}
  %0:2, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<5x8xf32>), tensor<6xi32>, tensor<?xi32>
  return
}

// -----

moe.cache @kv width 40
func.func @append_c3_context_slots(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op context_slots 'tensor<5xi32>' has 5 entries, but context_positions 'tensor<6xi32>' has 6 entries}}
  %0:2, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<6xi32>, tensor<5xi32>
  return
}

// -----

func.func @append_c4_no_symbol(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op no symbol @kv is visible here, expected a moe.cache}}
  %0:2, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  return
}

// -----

// expected-note@+1 {{defined here}}
func.func private @kv()
func.func @append_c4_not_a_cache(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op @kv is a func.func, expected a moe.cache}}
  %0:2, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  return
}

// -----

// expected-note@+1 {{defined here}}
moe.cache @kv width 64
func.func @append_c5_width(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op stores entries of 40 channels, but cache @kv has width 64}}
  %0:2, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  return
}

// -----

// expected-note@+1 {{defined here}}
moe.cache @kv width 40 of #moe.cache_codes<int8, 8>
func.func @append_c6_channels(%c: tensor<?x32xf32>, %k: tensor<?x8xf32>, %p: tensor<?xi32>, %s: tensor<?xi32>) {
  // expected-error@+1 {{'moe.cache_append' op stores entries whose first part has 32 channels, but cache @kv has codes for 8}}
  %0:2, %1, %2 = moe.cache_append @kv(%c, %k) at %p, %s
      : (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
     -> (tensor<?x32xf32>, tensor<?x8xf32>), tensor<?xi32>, tensor<?xi32>
  return
}
