// RUN: moe-opt %s -split-input-file -verify-diagnostics

// expected-error@+1 {{inv_freq is empty, expected one element for each pair of channels}}
func.func private @rope_c1() attributes {a = #moe.rope<factor = 1.0, inv_freq = []>}

// -----

// expected-error@+1 {{inv_freq[1] is nan, expected a finite number}}
func.func private @rope_c2_nan() attributes {a = #moe.rope<factor = 1.0, inv_freq = [1.0, 0x7FF8000000000000]>}

// -----

// expected-error@+1 {{inv_freq[0] is INF, expected a finite number}}
func.func private @rope_c2_infinity() attributes {a = #moe.rope<factor = 1.0, inv_freq = [0x7FF0000000000000]>}

// -----

// expected-error@+1 {{factor is 0x7FF0000000000000 : f64, expected a finite f64}}
func.func private @rope_c3_infinity() attributes {a = #moe.rope<factor = 0x7FF0000000000000 : f64, inv_freq = [1.0]>}

// -----

// expected-error@+1 {{factor is 1.000000e+00 : f32, expected a finite f64}}
func.func private @rope_c3_f32() attributes {a = #moe.rope<factor = 1.0 : f32, inv_freq = [1.0]>}

// -----

// expected-error@+1 {{columns [4, 4), expected 0 <= begin < end}}
func.func private @columns_c1_empty() attributes {a = #moe.columns<4, 4>}

// -----

// expected-error@+1 {{columns [-1, 4), expected 0 <= begin < end}}
func.func private @columns_c1_negative() attributes {a = #moe.columns<-1, 4>}

// -----

// expected-error@+1 {{from has 1 dimensions, expected two or three}}
func.func private @reshape_c1_rank() attributes {a = #moe.reshape<[8], [2, 4]>}

// -----

// expected-error@+1 {{to is 0, expected a positive number}}
func.func private @reshape_c1_zero() attributes {a = #moe.reshape<[2, 4], [2, 0, 4]>}

// -----

// expected-error@+1 {{reshapes [2, 4] to [4, 2], expected equal first dimensions and sizes}}
func.func private @reshape_c2_first() attributes {a = #moe.reshape<[2, 4], [4, 2]>}

// -----

// expected-error@+1 {{reshapes [2, 4] to [2, 2, 3], expected equal first dimensions and sizes}}
func.func private @reshape_c2_size() attributes {a = #moe.reshape<[2, 4], [2, 2, 3]>}

// -----

// expected-error@+1 {{scales columns by a tensor without a name}}
func.func private @scale_columns_c1_empty() attributes {a = #moe.scale_columns<"">}

// -----

// expected-error@+1 {{scales columns by 'e.{e}.norm', a family of tensors, expected one}}
func.func private @scale_columns_c1_family() attributes {a = #moe.scale_columns<"e.{e}.norm">}

// -----

// expected-error@+1 {{count is 0, expected a positive number}}
func.func private @stack_c1() attributes {a = #moe.stack<0>}

// -----

// expected-error@+1 {{expected integer value}}
func.func private @stack_no_member() attributes {a = #moe.stack<[]>}

// -----

// expected-error@+1 {{members[0] is -1, expected the number of an expert}}
func.func private @stack_c2_negative() attributes {a = #moe.stack<[-1, 3]>}

// -----

// expected-error@+1 {{members[2] is 3, expected more than the 3 before it}}
func.func private @stack_c2_twice() attributes {a = #moe.stack<[0, 3, 3]>}

// -----

// expected-error@+1 {{members[1] is 0, expected more than the 3 before it}}
func.func private @stack_c2_descending() attributes {a = #moe.stack<[3, 0]>}

// -----

// expected-error@+1 {{a block of 0, expected a positive number, or ? for a whole dimension}}
func.func private @dequant_c1_rows() attributes {a = #moe.dequant<fp8 0x128, f32>}

// -----

// expected-error@+1 {{a block of 0, expected a positive number, or ? for a whole dimension}}
func.func private @dequant_c1_cols() attributes {a = #moe.dequant<fp8 128x0, f32>}

// -----

// expected-error@+1 {{expected a block shape such as 128x128}}
func.func private @dequant_one_dimension() attributes {a = #moe.dequant<fp8 128, f32>}

// -----

// expected-error@+1 {{element type is 'i8', expected f32, bf16 or f16}}
func.func private @dequant_c2() attributes {a = #moe.dequant<fp8 128x128, i8>}

// -----

// expected-error@+1 {{'int3' is no format of stored weights}}
func.func private @dequant_unknown() attributes {a = #moe.dequant<int3, f32>}

// -----

// expected-error@+1 {{gptq has groups of one row, not 2}}
func.func private @dequant_c1_group_of_rows() attributes {a = #moe.dequant<gptq 2x64 bits 4, f32>}

// -----

// expected-error@+1 {{bits of packed are 3, expected 4 or 8}}
func.func private @dequant_c3() attributes {a = #moe.dequant<packed 1x32 bits 3, f32>}

// -----

// expected-error@+1 {{awq weights are never 'symmetric'}}
func.func private @dequant_c4_symmetric() attributes {a = #moe.dequant<awq 1x128 symmetric, f32>}

// -----

// expected-error@+1 {{gguf_q4_k weights are never 'indexed'}}
func.func private @dequant_c4_indexed() attributes {a = #moe.dequant<gguf_q4_k indexed, f32>}

// -----

// expected-error@+1 {{gguf_q6_k blocks hold f32, not 'bf16'}}
func.func private @dequant_c2_blocks() attributes {a = #moe.dequant<gguf_q6_k, bf16>}

// -----

// expected-error@+1 {{gptq weights are never 'zeros'}}
func.func private @dequant_c4_zeros() attributes {a = #moe.dequant<gptq 1x128 bits 4 zeros, f32>}

// -----

// expected-error@+1 {{heads is -1, expected a positive number}}
func.func private @head_rows_c1() attributes {a = #moe.head_rows<-1, 0, 16>}

// -----

// expected-error@+1 {{rows [16, 16) of each head, expected 0 <= begin < end}}
func.func private @head_rows_c2_empty() attributes {a = #moe.head_rows<4, 16, 16>}

// -----

// expected-error@+1 {{rows [-1, 16) of each head, expected 0 <= begin < end}}
func.func private @head_rows_c2_negative() attributes {a = #moe.head_rows<4, -1, 16>}

// -----

// expected-error@+1 {{rows has 1 elements, expected two or more}}
func.func private @concat_c1_one() attributes {a = #moe.concat<[16]>}

// -----

// expected-error@+1 {{rows is 0, expected a positive number}}
func.func private @concat_c1_empty() attributes {a = #moe.concat<[16, 0]>}

// -----

// expected-error@+1 {{count is 0, expected a positive number}}
func.func private @append_c1() attributes {a = #moe.append<rows, 0>}

// -----

// expected-error@+1 {{element type is 'i32', expected f32, bf16 or f16}}
func.func private @cast_c1() attributes {a = #moe.cast<i32>}

// -----

// expected-error@+1 {{size is -4, expected a positive number}}
func.func private @pad_c1() attributes {a = #moe.pad<-4>}

// -----

// expected-error@+1 {{width is 0, expected a positive number}}
func.func private @pack_panels_c1_width() attributes {a = #moe.pack_panels<0>}

// -----

// expected-error@+1 {{columns is -1, expected a positive number}}
func.func private @pack_panels_c1_columns() attributes {a = #moe.pack_panels<32, -1>}

// -----

// expected-error@+1 {{width is 0, expected a positive number}}
func.func private @pack_block_scales_c1_width() attributes {a = #moe.pack_block_scales<0, 1, 1>}

// -----

// expected-error@+1 {{n is 0, expected a positive number}}
func.func private @pack_block_scales_c1_n() attributes {a = #moe.pack_block_scales<1, 0, 1>}

// -----

// expected-error@+1 {{rows is 0, expected a positive number}}
func.func private @pack_block_scales_c1_rows() attributes {a = #moe.pack_block_scales<1, 1, 0>}

// -----

// expected-error@+1 {{group is 48, expected a positive multiple of 32}}
func.func private @quantize_c1_part() attributes {a = #moe.quantize<int4, group = 48, scale = f16>}

// -----

// expected-error@+1 {{group is 0, expected a positive multiple of 32}}
func.func private @quantize_c1_zero() attributes {a = #moe.quantize<int4, group = 0, scale = f16>}

// -----

// expected-error@+1 {{scales of int4 codes are 'f32', expected bf16, f16 or f8E8M0FNU}}
func.func private @quantize_c2() attributes {a = #moe.quantize<int4, group = 32, scale = f32>}

// -----

// expected-error@+1 {{group is 32, expected 16}}
func.func private @quantize_c1_nvfp4() attributes {a = #moe.quantize<f4e2m1, group = 32, scale = f8E4M3FN>}

// -----

// expected-error@+1 {{scales of int4_zero codes are 'f8E8M0FNU', expected bf16 or f16}}
func.func private @quantize_c2_zero() attributes {a = #moe.quantize<int4_zero, group = 32, scale = f8E8M0FNU>}

// -----

// expected-error@+1 {{scales of int8 codes are 'f16', expected f32}}
func.func private @quantize_c2_int8() attributes {a = #moe.quantize<int8, group = 5, scale = f16>}

// -----

// expected-error@+1 {{rows is 2, expected 1 unless f8e4m3 codes are rounded to nearest or by feedback}}
func.func private @quantize_c3() attributes {a = #moe.quantize<int8, group = 32, scale = f32 rows 2>}

// -----

// expected-error@+1 {{rows is 128, expected 1 unless f8e4m3 codes are rounded to nearest or by feedback}}
func.func private @quantize_c3_importance() attributes {a = #moe.quantize<f8e4m3, group = 128, scale = f32 rows 128 rounding importance>}

// -----

// expected-error@+1 {{width is 0, expected a positive number}}
func.func private @pack_groups_c1() attributes {a = #moe.pack_groups<0>}

// -----

// expected-error@+1 {{scales are 'f32', expected bf16 or f16}}
func.func private @dequant_c5() attributes {a = #moe.dequant<packed 1x32 bits 4 scale f32, f32>}
