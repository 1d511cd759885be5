// RUN: emit-kernel %s --level=x86-64-v4 | FileCheck %s --check-prefix=V4 --implicit-check-not=call
// RUN: emit-kernel %s --level=x86-64-v3 | FileCheck %s --check-prefix=V3 --implicit-check-not=call --implicit-check-not=zmm

// The full tile of v4: two vectors of weights for each of two columns, which lie together, then for each of eight rows
// two broadcasts and four products.
// V4-LABEL: gemm_bf16:
// V4:      vpslld $16, %[[W0:zmm[0-9]+]], %zmm
// V4-NEXT: vpandq %zmm{{[0-9]+}}, %[[W0]], %zmm
// V4-NEXT: vpslld $16, %[[W1:zmm[0-9]+]], %zmm
// V4-NEXT: vpandq %zmm{{[0-9]+}}, %[[W1]], %zmm
// V4-COUNT-32: vfmadd231ps %zmm
// V4-NEXT: addq
// V4: jb
// v3: six rows of one vector, which is two registers.
// V3-LABEL: gemm_bf16:
// V3: vpslld $16, %ymm
// V3: vpslld $16, %ymm
// V3-COUNT-24: vfmadd231ps %ymm
// V3-NOT: vfmadd231ps
// V3: jb
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

// bf16 against bf16: a panel's columns lie in pairs, as the instructions for it take them.
// VNNI-LABEL: gemm_pairs:
// VNNI-NOT: {{vpunpck|vpermw|vpermt2w}}
// VNNI-COUNT-28: vdpbf16ps %zmm
// VNNI-NOT: {{vdpbf16ps|vpunpck|vpermw|vpermt2w}}
// VNNI: jb
// With tiles of AMX sums stay in registers: 32 rows times 32 outputs over 32 columns in four instructions.
// AMX-LABEL: gemm_pairs:
// AMX-COUNT-4: tilezero
// AMX: tileloadd {{.*}}, %tmm6
// AMX: tileloadd {{.*}}, %tmm7
// AMX: tileloadd {{.*}}, %tmm4
// AMX-NEXT: tdpbf16ps %tmm6, %tmm4, %tmm0
// AMX-NEXT: tdpbf16ps %tmm7, %tmm4, %tmm1
// AMX: tileloadd {{.*}}, %tmm5
// AMX-NEXT: tdpbf16ps %tmm6, %tmm5, %tmm2
// AMX-NEXT: tdpbf16ps %tmm7, %tmm5, %tmm3
// AMX: tilerelease
// Elsewhere a product is one instruction for each of the two.
// I8MM-LABEL: gemm_pairs:
// I8MM: bfmlalt {{v[0-9]+}}.4s
// I8MM: bfmlalb {{v[0-9]+}}.4s
// V3-LABEL: gemm_pairs:
// V3: vpslld $16
// V3: vfmadd231ps
exec.kernel @gemm_pairs "gemm" {weight = "bf16", n = 64, k = 2048, batch = 1, scale_cols = 0, group = 0, group_scale = "f16", input = "bf16", output = "f32", output_offset = 0, x_stride = 2048,
    x_batch = 0, y_stride = 64, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "none", topk = 0,
    rows = "T"}
