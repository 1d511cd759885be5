// RUN: moe-opt %s -split-input-file -verify-diagnostics

func.func @weight_c1_no_source() {
  // expected-error@+1 {{'moe.weight' op has no source}}
  %0 = moe.weight [] : tensor<8xf32>
  return
}

// -----

func.func @weight_c1_empty_name() {
  // expected-error@+1 {{has a source with an empty name}}
  %0 = moe.weight ["a", ""] : tensor<8xf32>
  return
}

// -----

func.func @weight_c1_two_markers() {
  // expected-error@+1 {{source '{e}.{e}.w' holds '{e}' 2 times, expected at most once}}
  %0 = moe.weight ["{e}.{e}.w"] recipe [#moe.stack<8>] : tensor<8x8xf32>
  return
}

// -----

func.func @weight_c2_not_a_step() {
  // expected-error@+1 {{recipe[1] '7 : i64' is not a step of a recipe}}
  %0 = moe.weight ["a"] recipe [#moe.transpose, 7] : tensor<8x8xf32>
  return
}

// -----

func.func @weight_c3_nothing_to_stack() {
  // expected-error@+1 {{recipe[0] '#moe.stack<8>' finds no source with '{e}' to stack}}
  %0 = moe.weight ["experts.0.w"] recipe [#moe.stack<8>] : tensor<8x4x4xf32>
  return
}

// -----

func.func @weight_c3_stacked_twice() {
  // expected-error@+1 {{recipe[1] '#moe.stack<8>' finds no source with '{e}' to stack}}
  %0 = moe.weight ["{e}.w"] recipe [#moe.stack<4>, #moe.stack<8>] : tensor<8x4x4xf32>
  return
}

// -----

func.func @weight_c4_no_pair() {
  // expected-error@+1 {{recipe[0] '#moe.dequant<fp8 128x128, f32>' needs 2 tensors for each weight, but finds 1 tensor}}
  %0 = moe.weight ["w"] recipe [#moe.dequant<fp8 128x128, f32>] : tensor<8x8xf32>
  return
}

// -----

func.func @weight_c4_family_with_single() {
  // expected-error@+1 {{takes a tensor per expert beside a single one: tensors 0 and 1}}
  %0 = moe.weight ["{e}.w", "scale"] recipe [#moe.dequant<fp8 128x128, f32>, #moe.stack<2>] : tensor<2x8x8xf32>
  return
}

// -----

func.func @weight_c4_not_first() {
  // expected-error@+1 {{recipe[1] '#moe.dequant<fp8 128x128, f32>' reads tensors of the checkpoint, but is not the first step}}
  %0 = moe.weight ["w", "s"] recipe [#moe.cast<f32>, #moe.dequant<fp8 128x128, f32>] : tensor<8x8xf32>
  return
}

// -----

func.func @weight_c5_three_tensors() {
  // expected-error@+1 {{recipe[0] '#moe.pack_panels<32>' packs one or two tensors, but finds 3}}
  %0 = moe.weight ["a", "b", "c"] recipe [#moe.pack_panels<32>] : tensor<1x2x8x32xf32>
  return
}

// -----

func.func @weight_c5_odd_width() {
  // expected-error@+1 {{recipe[0] '#moe.pack_panels<31>' shares a panel between two tensors, but its width 31 is odd}}
  %0 = moe.weight ["a", "b"] recipe [#moe.pack_panels<31>] : tensor<1x2x8x31xf32>
  return
}

// -----

func.func @weight_c5_unstacked() {
  // expected-error@+1 {{recipe[0] '#moe.pack_panels<32>' packs tensors that no earlier step has stacked}}
  %0 = moe.weight ["{e}.a"] recipe [#moe.pack_panels<32>, #moe.stack<2>] : tensor<2x2x8x32xf32>
  return
}

// -----

func.func @weight_c6_two_left() {
  // expected-error@+1 {{the recipe leaves 2 tensors, expected one}}
  %0 = moe.weight ["a", "b"] recipe [#moe.transpose] : tensor<8x8xf32>
  return
}

// -----

func.func @weight_c6_family_left() {
  // expected-error@+1 {{no step stacks the tensors of source 'experts.{e}.w'}}
  %0 = moe.weight ["experts.{e}.w"] : tensor<8x8xf32>
  return
}

// -----

func.func @weight_c7_stack_count() {
  // expected-error@+1 {{recipe[0] '#moe.stack<64>' gives 64 along dimension 0, but the result is 'tensor<8x4x4xbf16>'}}
  %0 = moe.weight ["{e}.w"] recipe [#moe.stack<64>] : tensor<8x4x4xbf16>
  return
}

// -----

func.func @weight_c7_stack_members() {
  // expected-error@+1 {{recipe[0] '#moe.stack<[0, 3, 5]>' gives 3 along dimension 0, but the result is 'tensor<6x4x4xbf16>'}}
  %0 = moe.weight ["{e}.w"] recipe [#moe.stack<[0, 3, 5]>] : tensor<6x4x4xbf16>
  return
}

// -----

func.func @weight_c7_stack_of_scalars_to_scalar() {
  // expected-error@+1 {{recipe[0] '#moe.stack<64>' gives one dimension or more, but the result is 'tensor<bf16>'}}
  %0 = moe.weight ["{e}.w"] recipe [#moe.stack<64>] : tensor<bf16>
  return
}

// -----

func.func @weight_c7_head_rows_rank() {
  // expected-error@+1 {{recipe[0] '#moe.head_rows<4, 0, 16>' gives three dimensions, but the result is 'tensor<64x32xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.head_rows<4, 0, 16>] : tensor<64x32xbf16>
  return
}

// -----

func.func @weight_c7_head_rows_heads() {
  // expected-error@+1 {{recipe[0] '#moe.head_rows<4, 0, 16>' gives 4 along dimension 0, but the result is 'tensor<8x16x32xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.head_rows<4, 0, 16>] : tensor<8x16x32xbf16>
  return
}

// -----

func.func @weight_c7_head_rows_rows() {
  // expected-error@+1 {{recipe[0] '#moe.head_rows<4, 16, 28>' gives 12 along dimension 1, but the result is 'tensor<4x28x32xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.head_rows<4, 16, 28>] : tensor<4x28x32xbf16>
  return
}

// -----

func.func @weight_c7_transpose_rank() {
  // expected-error@+1 {{recipe[0] '#moe.transpose' gives two dimensions or more, but the result is 'tensor<32xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.transpose] : tensor<32xbf16>
  return
}

// -----

func.func @weight_c7_pad_size() {
  // expected-error@+1 {{recipe[0] '#moe.pad<48>' gives 48 along dimension 1, but the result is 'tensor<8x40xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.pad<48>] : tensor<8x40xbf16>
  return
}

// -----

// An earlier step is held against what the later ones need.
func.func @weight_c7_pad_before_transpose() {
  // expected-error@+1 {{recipe[0] '#moe.pad<48>' gives 48 along dimension 1, but the later steps need [32, 40] for the result 'tensor<40x32xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.pad<48>, #moe.transpose] : tensor<40x32xbf16>
  return
}

// -----

func.func @weight_c7_dequant_rank() {
  // expected-error@+1 {{recipe[0] '#moe.dequant<fp8 128x128, f32>' gives two dimensions or more, but the result is 'tensor<8xf32>'}}
  %0 = moe.weight ["w", "s"] recipe [#moe.dequant<fp8 128x128, f32>] : tensor<8xf32>
  return
}

// -----

func.func @weight_c7_pack_rank() {
  // expected-error@+1 {{recipe[0] '#moe.pack_panels<32>' gives four dimensions [B, panels, C, width], but the result is 'tensor<2x8x32xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.pack_panels<32>] : tensor<2x8x32xbf16>
  return
}

// -----

func.func @weight_c7_pack_width() {
  // expected-error@+1 {{recipe[0] '#moe.pack_panels<32>' gives 32 along dimension 3, but the result is 'tensor<1x2x8x16xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.pack_panels<32>] : tensor<1x2x8x16xbf16>
  return
}

// -----

func.func @weight_c7_stack_before_pack() {
  // expected-error@+1 {{recipe[0] '#moe.stack<8>' gives 8 along dimension 0, but the later steps need [4, ?, 16] for the result 'tensor<4x2x16x32xbf16>'}}
  %0 = moe.weight ["{e}.w"] recipe [#moe.stack<8>, #moe.pack_panels<32>] : tensor<4x2x16x32xbf16>
  return
}

// -----

func.func @weight_c7_pad_before_pack() {
  // expected-error@+1 {{recipe[0] '#moe.pad<24>' gives 24 along dimension 1, but the later steps need [..., ?, 16] for the result 'tensor<1x2x16x32xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.pad<24>, #moe.pack_panels<32>] : tensor<1x2x16x32xbf16>
  return
}

// -----

// 60 rows of two tensors, 16 lanes each: four panels.
func.func @weight_c7_scale_panels() {
  // expected-error@+1 {{recipe[0] '#moe.pack_block_scales<32, 60, 128>' gives 4 along dimension 1, but the result is 'tensor<1x2x2x32xf32>'}}
  %0 = moe.weight ["a", "b"] recipe [#moe.pack_block_scales<32, 60, 128>] : tensor<1x2x2x32xf32>
  return
}

// -----

func.func @weight_c8_cast() {
  // expected-error@+1 {{the recipe gives elements of type 'bf16', but the result is 'tensor<8xf32>'}}
  %0 = moe.weight ["w"] recipe [#moe.cast<bf16>] : tensor<8xf32>
  return
}

// -----

func.func @weight_c7_columns() {
  // expected-error@+1 {{recipe[0] '#moe.columns<2, 6>' gives 4 along dimension 1, but the result is 'tensor<4x5xf32>'}}
  %0 = moe.weight ["w"] recipe [#moe.columns<2, 6>] : tensor<4x5xf32>
  return
}

// -----

func.func @weight_c7_reshape_rank() {
  // expected-error@+1 {{recipe[0] '#moe.reshape<[4, 12], [4, 2, 6]>' gives three dimensions, but the result is 'tensor<4x12xf32>'}}
  %0 = moe.weight ["w"] recipe [#moe.reshape<[4, 12], [4, 2, 6]>] : tensor<4x12xf32>
  return
}

// -----

func.func @weight_c7_reshape_size() {
  // expected-error@+1 {{recipe[0] '#moe.reshape<[4, 12], [4, 2, 6]>' gives 2 along dimension 1, but the result is 'tensor<4x3x4xf32>'}}
  %0 = moe.weight ["w"] recipe [#moe.reshape<[4, 12], [4, 2, 6]>] : tensor<4x3x4xf32>
  return
}

// -----

// What a reshape takes is known whatever it gives.
func.func @weight_c7_before_reshape() {
  // expected-error@+1 {{recipe[0] '#moe.pad<16>' gives 16 along dimension 1, but the later steps need [4, 12] for the result 'tensor<4x2x6xf32>'}}
  %0 = moe.weight ["w"] recipe [#moe.pad<16>, #moe.reshape<[4, 12], [4, 2, 6]>] : tensor<4x2x6xf32>
  return
}

// -----

func.func @weight_c12_odd() {
  // expected-error@+1 {{recipe[0] '#moe.sum' adds tensors by twos, but finds 3}}
  %0 = moe.weight ["a", "b", "c"] recipe [#moe.sum] : tensor<4x8xf32>
  return
}

// -----

func.func @weight_c12_family() {
  // expected-error@+1 {{recipe[0] '#moe.sum' adds tensors that no earlier step has stacked}}
  %0 = moe.weight ["{e}.a", "{e}.b"] recipe [#moe.sum, #moe.stack<2>] : tensor<2x4x8xf32>
  return
}

// -----

func.func @weight_c8_scale_columns() {
  // expected-error@+1 {{the recipe gives elements of type 'f32', but the result is 'tensor<4x8xbf16>'}}
  %0 = moe.weight ["w"] recipe [#moe.cast<bf16>, #moe.scale_columns<"g">] : tensor<4x8xbf16>
  return
}

// -----

// Products are no codes.
func.func @weight_c9_scale_columns() {
  // expected-error@+1 {{recipe[2] '#moe.pack_groups<32>' packs codes and scales, but finds a tensor that no earlier step quantizes}}
  %0 = moe.weight ["w"] recipe [#moe.quantize<int4, group = 32, scale = f16>, #moe.scale_columns<"g">, #moe.pack_groups<32>] : tensor<1x1x576xi8>
  return
}

// -----

func.func @weight_c8_dequant_then_stack() {
  // expected-error@+1 {{the recipe gives elements of type 'f32', but the result is 'tensor<2x8x8xbf16>'}}
  %0 = moe.weight ["{e}.w", "{e}.s"] recipe [#moe.dequant<fp8 128x128, f32>, #moe.stack<2>] : tensor<2x8x8xbf16>
  return
}

// -----

func.func @weight_dynamic() {
  // expected-error@+1 {{result #0 must be statically shaped tensor of any type values, but got 'tensor<?x8xf32>'}}
  %0 = moe.weight ["w"] : tensor<?x8xf32>
  return
}

// -----

func.func @weight_c5_three_tensors_of_groups() {
  // expected-error@+1 {{recipe[1] '#moe.pack_groups<32>' packs one or two tensors, but finds 3}}
  %0 = moe.weight ["a", "b", "c"] recipe [#moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<32>] : tensor<1x1x576xi8>
  return
}

// -----

func.func @weight_c7_quantize_rank() {
  // expected-error@+1 {{recipe[0] '#moe.quantize<int4, group = 32, scale = f16>' gives two dimensions or more, but the result is 'tensor<32xf32>'}}
  %0 = moe.weight ["a"] recipe [#moe.quantize<int4, group = 32, scale = f16>] : tensor<32xf32>
  return
}

// -----

func.func @weight_c7_quantize_part_of_a_group() {
  // expected-error@+1 {{recipe[0] '#moe.quantize<int4, group = 64, scale = f16>' cuts rows into groups of 64, but the result is 'tensor<8x96xf32>'}}
  %0 = moe.weight ["a"] recipe [#moe.quantize<int4, group = 64, scale = f16>] : tensor<8x96xf32>
  return
}

// -----

func.func @weight_c7_pack_groups_rank() {
  // expected-error@+1 {{recipe[1] '#moe.pack_groups<32>' gives three dimensions [B, panels, bytes], but the result is 'tensor<1x576xi8>'}}
  %0 = moe.weight ["a"] recipe [#moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<32>] : tensor<1x576xi8>
  return
}

// -----

func.func @weight_c8_quantize() {
  // expected-error@+1 {{the recipe gives elements of type 'f32', but the result is 'tensor<8x32xbf16>'}}
  %0 = moe.weight ["a"] recipe [#moe.quantize<int4, group = 32, scale = f16>] : tensor<8x32xbf16>
  return
}

// -----

func.func @weight_c8_pack_groups() {
  // expected-error@+1 {{the recipe gives elements of type 'i8', but the result is 'tensor<1x1x576xf32>'}}
  %0 = moe.weight ["a"] recipe [#moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<32>] : tensor<1x1x576xf32>
  return
}

// -----

func.func @weight_c9_not_quantized() {
  // expected-error@+1 {{recipe[0] '#moe.pack_groups<32>' packs codes and scales, but finds a tensor that no earlier step quantizes}}
  %0 = moe.weight ["a"] recipe [#moe.pack_groups<32>] : tensor<1x1x576xi8>
  return
}

// -----

func.func @weight_c9_transposed() {
  // expected-error@+1 {{recipe[2] '#moe.pack_groups<32>' packs codes and scales, but finds a tensor that no earlier step quantizes}}
  %0 = moe.weight ["a"] recipe [#moe.quantize<int4, group = 32, scale = f16>, #moe.transpose, #moe.pack_groups<32>] : tensor<1x1x576xi8>
  return
}

// -----

// Zero points of their own are in no group's 8.
func.func @weight_c9_zero_points() {
  // expected-error@+1 {{packs codes and scales, but finds a tensor that no earlier step quantizes}}
  %0 = moe.weight ["c", "s", "z", "h"] recipe [#moe.dequant<packed 1x32 bits 4 zeros scale bf16, f32>, #moe.pack_groups<32>] : tensor<1x1x576xi8>
  return
}

// -----

func.func @weight_c7_concat() {
  // expected-error@+1 {{recipe[0] '#moe.concat<[8, 16]>' gives 24 along dimension 0, but the result is 'tensor<25x32xf32>'}}
  %0 = moe.weight ["a", "b"] recipe [#moe.concat<[8, 16]>] : tensor<25x32xf32>
  return
}

// -----

func.func @weight_c7_concat_rank() {
  // expected-error@+1 {{recipe[0] '#moe.concat<[8, 16]>' gives two dimensions, but the result is 'tensor<2x12x32xf32>'}}
  %0 = moe.weight ["a", "b"] recipe [#moe.concat<[8, 16]>] : tensor<2x12x32xf32>
  return
}

// -----

// Heads of a joined matrix may begin in one part and end in the next.
func.func @weight_c9_heads_of_joined() {
  // expected-error@+1 {{recipe[3] '#moe.pack_groups<32>' packs codes and scales, but finds a tensor that no earlier step quantizes}}
  %0 = moe.weight ["a", "b"] recipe [#moe.quantize<int4, group = 32, scale = f16>, #moe.concat<[16, 16]>, #moe.head_rows<4, 0, 4>, #moe.pack_groups<32>] : tensor<4x1x576xi8>
  return
}

// -----

func.func @weight_c10_number() {
  // expected-error@+1 {{recipe[0] '#moe.concat<[8, 16]>' joins 2 tensors, but finds 3}}
  %0 = moe.weight ["a", "b", "c"] recipe [#moe.concat<[8, 16]>] : tensor<24x32xf32>
  return
}

// -----

func.func @weight_c10_family() {
  // expected-error@+1 {{recipe[0] '#moe.concat<[8, 16]>' joins tensors that no earlier step has stacked}}
  %0 = moe.weight ["a", "b.{e}"] recipe [#moe.concat<[8, 16]>, #moe.stack<2>] : tensor<2x24x32xf32>
  return
}

// -----

func.func @weight_c7_append() {
  // expected-error@+1 {{recipe[1] '#moe.append<rows, 4>' appends 4 matrices to one or more, but the result is 'tensor<4x8x32xf32>'}}
  %0 = moe.weight ["a.{e}", "b"] recipe [#moe.stack<2>, #moe.append<rows, 4>] : tensor<4x8x32xf32>
  return
}

// -----

func.func @weight_c7_append_stack() {
  // expected-error@+1 {{recipe[0] '#moe.stack<2>' gives 2 along dimension 0, but the later steps need [3, 8, 32] for the result 'tensor<4x8x32xf32>'}}
  %0 = moe.weight ["a.{e}", "b"] recipe [#moe.stack<2>, #moe.append<rows, 1>] : tensor<4x8x32xf32>
  return
}

// -----

func.func @weight_c7_append_rank() {
  // expected-error@+1 {{recipe[1] '#moe.append<rows, 1>' gives three dimensions, but the result is 'tensor<24x32xf32>'}}
  %0 = moe.weight ["a.{e}", "b"] recipe [#moe.stack<2>, #moe.append<rows, 1>] : tensor<24x32xf32>
  return
}

// -----

func.func @weight_c11_odd() {
  // expected-error@+1 {{recipe[1] '#moe.append<rows, 1>' takes tensors by twos, but finds 3}}
  %0 = moe.weight ["a.{e}", "b", "c"] recipe [#moe.stack<2>, #moe.append<rows, 1>] : tensor<3x8x32xf32>
  return
}

// -----

func.func @weight_c11_no_stack() {
  // expected-error@+1 {{recipe[0] '#moe.append<rows, 1>' finds no stack to append to}}
  %0 = moe.weight ["a.{e}", "b"] recipe [#moe.append<rows, 1>, #moe.stack<2>] : tensor<3x8x32xf32>
  return
}

// -----

// Slices have scales of their own.
func.func @weight_c11_codes() {
  // expected-error@+1 {{recipe[2] '#moe.append<rows, 1>' comes after codes were made}}
  %0 = moe.weight ["a.{e}", "b"] recipe [#moe.stack<2>, #moe.quantize<int8, group = 32, scale = f32>, #moe.append<rows, 1>] : tensor<3x8x32xf32>
  return
}
