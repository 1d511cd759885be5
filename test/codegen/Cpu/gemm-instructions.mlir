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
exec.kernel @gemm_bf16 "gemm" {weight = "bf16", n = 64, k = 2048, batch = 1, scale_cols = 0, group = 0, group_scale = "f16", input = "f32", x_stride = 2048,
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
exec.kernel @gemm_f8 "gemm" {weight = "f8e4m3", n = 64, k = 2048, batch = 1, scale_cols = 128, group = 0, group_scale = "f16", input = "f32", x_stride = 2048,
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
    group_scale = "f16", input = "f32", x_stride = 2048, x_batch = 0, y_stride = 64, y_batch = 0, residual_stride = 0,
    codes = "int4", epilogue = "none", routing = "none", topk = 0, rows = "T"}

// Codes against codes: a full tile's sixteen rows take eight instructions of four products in each lane for 32 columns.
// RUN: emit-kernel %s --level=x86-64-v4-vnni | FileCheck %s --check-prefix=VNNI --implicit-check-not=call
// VNNI-LABEL: gemm_codes:
// VNNI: vpandq
// VNNI-COUNT-128: vpdpbusd {{.*}}{1to16}, %zmm
// VNNI: vfmadd231ps %zmm
// VNNI: jne
// Below that, nibbles times bytes do not exceed i16, two by two.
// V4-LABEL: gemm_codes:
// V4: vpmaddubsw {{.*}}zmm
// V4: vpmaddwd {{.*}}zmm
// V3-LABEL: gemm_codes:
// V3: vpmaddubsw {{.*}}ymm
// V3: vpmaddwd {{.*}}ymm
exec.kernel @gemm_codes "gemm" {weight = "u8", n = 64, k = 2048, batch = 1, scale_cols = 0, group = 32, group_scale = "f16", input = "u8", x_stride = 2560,
    x_batch = 0, y_stride = 64, y_batch = 0, residual_stride = 0, codes = "int4", epilogue = "none", routing = "none", topk = 0,
    rows = "T"}
