// RUN: emit-kernel %s --level=x86-64-v4 | FileCheck %s --check-prefix=V4 --implicit-check-not=call
// RUN: emit-kernel %s --level=x86-64-v3 | FileCheck %s --check-prefix=V3 --implicit-check-not=call --implicit-check-not=zmm

// The full tile of v4: two vectors of weights, then for each of eight rows one broadcast and two products.
// V4-LABEL: gemm_bf16:
// V4:      vpmovzxwd {{.*}}, %[[W0:zmm[0-9]+]]
// V4-NEXT: vpmovzxwd {{.*}}, %[[W1:zmm[0-9]+]]
// V4-NEXT: vpslld $16, %[[W0]], %[[W0]]
// V4-NEXT: vpslld $16, %[[W1]], %[[W1]]
// V4-COUNT-16: vfmadd231ps %zmm
// V4: jne
// v3: six rows of one vector, which is two registers.
// V3-LABEL: gemm_bf16:
// V3:      vpmovzxwd {{.*}}, %ymm
// V3:      vpslld $16, %ymm
// V3-COUNT-12: vfmadd231ps %ymm
// V3: jne
exec.kernel @gemm_bf16 "gemm" {weight = "bf16", n = 64, k = 2048, batch = 1, scale_cols = 0, group = 0, group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 2048,
    x_batch = 0, y_stride = 64, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "none", topk = 0,
    rows = "T"}

// FP8 goes through the bits of f16.
// V4-LABEL: gemm_f8:
// V4: vpmovsxbw
// V4: vpsllw $7
// V4: vcvtph2ps {{.*}}, %zmm
// V4: vfmadd231ps %zmm
// V3-LABEL: gemm_f8:
// V3: vpmovsxbw
// V3: vpsllw $7
// V3: vcvtph2ps {{.*}}, %ymm
// V3: vfmadd231ps %ymm
exec.kernel @gemm_f8 "gemm" {weight = "f8e4m3", n = 64, k = 2048, batch = 1, scale_cols = 128, group = 0, group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 2048,
    x_batch = 0, y_stride = 64, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "none", topk = 0,
    rows = "T"}

// Codes become floats in three operations: shift, mask and exponent at once, minus the bias.
// V4-LABEL: gemm_int4:
// V4: vpsrld $4, {{.*}}zmm
// V4: vpternlogd
// V4: vaddps
// V4: vfmadd{{[0-9]+}}ps {{.*}}zmm
// V3-LABEL: gemm_int4:
// V3: vpand
// V3: vpor
// V3: vfmadd{{[0-9]+}}ps {{.*}}ymm
exec.kernel @gemm_int4 "gemm" {weight = "u8", n = 64, k = 2048, batch = 1, scale_cols = 0, group = 32,
    group_scale = "f16", input = "f32", output = "f32", output_offset = 0, x_stride = 2048, x_batch = 0, y_stride = 64, y_batch = 0, residual_stride = 0,
    codes = "int4", epilogue = "none", routing = "none", topk = 0, rows = "T"}

// Codes against codes: a full tile's sixteen rows take eight instructions of four products in each lane for 32 columns.
// RUN: emit-kernel %s --level=x86-64-v4-vnni | FileCheck %s --check-prefix=VNNI --implicit-check-not=call
// VNNI-LABEL: gemm_codes:
// VNNI: vpandq
// VNNI-COUNT-128: vpdpbusd {{.*}}{1to16}, %zmm
// VNNI: vfmadd231ps %zmm
// VNNI: jne
// With tiles of AMX it is one instruction for 32 columns of the sixteen rows, between the configuration and its release.
// RUN: emit-kernel %s --level=x86-64-v4-amx | FileCheck %s --check-prefix=AMX --implicit-check-not=call
// AMX-LABEL: gemm_codes:
// AMX: ldtilecfg
// AMX: tilezero %tmm0
// AMX-NEXT: tileloadd {{.*}}, %tmm1
// AMX-NEXT: tileloadd {{.*}}, %tmm2
// AMX-NEXT: tdpbssd %tmm2, %tmm1, %tmm0
// AMX-NEXT: tilestored %tmm0,
// AMX-COUNT-16: vfmadd231ps
// AMX: tilerelease
// AMX: retq
// Below that, the products of nibbles and bytes in all 32 columns are summed up in i16, two by two.
// V4-LABEL: gemm_codes:
// V4-COUNT-8: vpmaddubsw {{.*}}zmm
// V4: vpmaddwd {{.*}}zmm
// V3-LABEL: gemm_codes:
// V3-COUNT-8: vpmaddubsw {{.*}}ymm
// V3: vpmaddwd {{.*}}ymm
// RUN: emit-kernel %s --level=x86-64-v3-vnni | FileCheck %s --check-prefix=V3VNNI --implicit-check-not=call --implicit-check-not=zmm
// V3VNNI-LABEL: gemm_codes:
// V3VNNI-COUNT-64: {vex} vpdpbusd {{.*}}, %ymm
// V3VNNI: vfmadd231ps %ymm
// V3VNNI: jne
// Arm has a product of unsigned bytes and signed ones, else of signed ones, which nibbles are as well.
// RUN: emit-kernel %s --level=aarch64-i8mm | FileCheck %s --check-prefix=I8MM --implicit-check-not=blr
// I8MM-LABEL: gemm_codes:
// I8MM-COUNT-128: usdot {{v[0-9]+}}.4s, {{v[0-9]+}}.16b
// I8MM: fmla {{v[0-9]+}}.4s
// RUN: emit-kernel %s --level=aarch64-dotprod | FileCheck %s --check-prefix=DOTPROD --implicit-check-not=usdot
// DOTPROD-LABEL: gemm_codes:
// DOTPROD-COUNT-128: sdot {{v[0-9]+}}.4s, {{v[0-9]+}}.16b
// DOTPROD: fmla {{v[0-9]+}}.4s
// RUN: emit-kernel %s --level=aarch64 | FileCheck %s --check-prefix=ARM --implicit-check-not=sdot
// ARM-LABEL: gemm_codes:
// ARM: mla {{v[0-9]+}}.4s
exec.kernel @gemm_codes "gemm" {weight = "u8", n = 64, k = 2048, batch = 1, scale_cols = 0, group = 32, group_scale = "f16", input = "u8", output = "f32", output_offset = 0, x_stride = 2560,
    x_batch = 0, y_stride = 64, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "none", topk = 0,
    rows = "T"}
