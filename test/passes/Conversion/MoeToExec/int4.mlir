// RUN: moe-opt %s -moe-to-exec | FileCheck %s

// Quantized weights are packed as codes and scales in one stream of bytes; experts' gate and up share panels. Whatever
// must be transposed first stays what the codes stand for.

// CHECK: exec.weight @q ["q", "q.s"] recipe [#moe.dequant<fp8 128x128, f32>, #moe.quantize<int4, group = 32, scale = f16>, #moe.pack_groups<32>] : memref<1x2x1152xi8>
// CHECK: exec.weight @g ["g.{e}", "u.{e}"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 64, scale = bf16>, #moe.pack_groups<32>] : memref<4x2x1088xi8>
// What is stored as int4 around 8 in such groups is kept; with zero points of its own, or an order, it is not.
// CHECK: exec.weight @d ["d.{e}.c", "d.{e}.s", "d.{e}.h"] recipe [#moe.dequant<packed 1x32 bits 4 scale bf16, f32>, #moe.stack<4>, #moe.pack_groups<32>] : memref<4x2x576xi8>
// CHECK: exec.weight @k ["k.c", "k.s", "k.z", "k.h"] recipe [#moe.dequant<packed 1x32 bits 4 zeros scale bf16, f32>, #moe.pack_panels<32>] : memref<1x2x64x32xf32>
// Joined ones have the codes of each.
// CHECK: exec.weight @m ["m", "n"] recipe [#moe.quantize<int4, group = 32, scale = f16>, #moe.concat<[40, 24]>, #moe.pack_groups<32>] : memref<1x2x1152xi8>
// CHECK: exec.weight @o ["o.c", "o.s", "o.h", "p.c", "p.s", "p.h"] recipe [#moe.dequant<packed 1x32 bits 4 scale bf16, f32>, #moe.concat<[40, 24]>, #moe.pack_groups<32>] : memref<1x2x1152xi8>
// CHECK: exec.kernel @gemm_int4_g32_n64_k64 "gemm" {{.*}}group = 32 : i64, group_scale = "f16"{{.*}}scale_cols = 0 : i64{{.*}}weight = "u8"
// CHECK: exec.kernel @gemm_int4_g64_n32_k64_e4_gather_swiglu "gemm" {{.*}}group = 64 : i64, group_scale = "bf16"
// CHECK: exec.launch @gemm_int4_g32_n64_k64(%{{.+}}, %{{.+}}, %{{.+}}) {{.*}}memref<1x2x1152xi8>
func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>, %slots: tensor<?xi32>, %rows: tensor<?xi32>) -> tensor<?x64xf32> {
  %table = moe.weight ["table"] : tensor<100x64xf32>
  %wq = moe.weight ["q", "q.s"] recipe [#moe.dequant<fp8 128x128, f32>, #moe.quantize<int4, group = 32, scale = f16>] : tensor<64x64xf32>
  %wr = moe.weight ["r"] : tensor<4x64xf32>
  %G = moe.weight ["g.{e}"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 64, scale = bf16>] : tensor<4x32x64xf32>
  %U = moe.weight ["u.{e}"] recipe [#moe.stack<4>, #moe.quantize<int4, group = 64, scale = bf16>] : tensor<4x32x64xf32>
  %D = moe.weight ["d.{e}.c", "d.{e}.s", "d.{e}.h"] recipe [#moe.dequant<packed 1x32 bits 4 scale bf16, f32>, #moe.stack<4>] : tensor<4x64x32xf32>
  %wk = moe.weight ["k.c", "k.s", "k.z", "k.h"] recipe [#moe.dequant<packed 1x32 bits 4 zeros scale bf16, f32>] : tensor<64x64xf32>
  %t = moe.embed %tokens in %table : tensor<?xi32>, tensor<100x64xf32> -> tensor<?x64xf32>
  %x = moe.linear %t, %wq : tensor<?x64xf32>, tensor<64x64xf32> -> tensor<?x64xf32>
  %l = moe.linear %x, %wr : tensor<?x64xf32>, tensor<4x64xf32> -> tensor<?x4xf32>
  %w, %e = moe.route softmax topk(2) %l : tensor<?x4xf32> -> tensor<?x2xf32>, tensor<?x2xi32>
  %y = moe.experts %x route(%w, %e) ffn(%G, %U, %D)
    : tensor<?x64xf32>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<4x32x64xf32>, tensor<4x32x64xf32>, tensor<4x64x32xf32> -> tensor<?x64xf32>
  %k = moe.linear %y, %wk : tensor<?x64xf32>, tensor<64x64xf32> -> tensor<?x64xf32>
  %wmn = moe.weight ["m", "n"] recipe [#moe.quantize<int4, group = 32, scale = f16>, #moe.concat<[40, 24]>] : tensor<64x64xf32>
  %mn = moe.linear %k, %wmn : tensor<?x64xf32>, tensor<64x64xf32> -> tensor<?x64xf32>
  %wop = moe.weight ["o.c", "o.s", "o.h", "p.c", "p.s", "p.h"] recipe [#moe.dequant<packed 1x32 bits 4 scale bf16, f32>, #moe.concat<[40, 24]>] : tensor<64x64xf32>
  %op = moe.linear %mn, %wop : tensor<?x64xf32>, tensor<64x64xf32> -> tensor<?x64xf32>
  %r = moe.gather_rows %op[%rows] : tensor<?x64xf32>, tensor<?xi32> -> tensor<?x64xf32>
  return %r : tensor<?x64xf32>
}
