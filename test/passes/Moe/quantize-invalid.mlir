// RUN: not moe-opt %s -pass-pipeline='builtin.module(func.func(moe-quantize{experts=int3}))' 2>&1 | FileCheck %s
// RUN: not moe-opt %s -pass-pipeline='builtin.module(func.func(moe-quantize{experts=int4:g48}))' 2>&1 | FileCheck %s --check-prefix=GROUP
// RUN: not moe-opt %s -pass-pipeline='builtin.module(func.func(moe-quantize{head=f16:g32}))' 2>&1 | FileCheck %s --check-prefix=PLAIN

// CHECK: unknown weight format 'int3', expected keep, f32, bf16, f16, int8, fp8, int4, mxfp4 or nvfp4
// GROUP: unknown weight format 'int4:g48': int4 takes the options :g32, :g64, :g128, :f16, :bf16, :e8m0, :zero
// PLAIN: unknown weight format 'f16:g32': f16 takes no options
func.func @any() {
  return
}
