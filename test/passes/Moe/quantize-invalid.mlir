// RUN: not moe-opt %s -pass-pipeline='builtin.module(func.func(moe-quantize{experts=int3}))' 2>&1 | FileCheck %s
// RUN: not moe-opt %s -pass-pipeline='builtin.module(func.func(moe-quantize{experts=int4:g48}))' 2>&1 | FileCheck %s --check-prefix=GROUP
// RUN: not moe-opt %s -pass-pipeline='builtin.module(func.func(moe-quantize{head=bf16:g32}))' 2>&1 | FileCheck %s --check-prefix=PLAIN

// CHECK: unknown weight format 'int3', expected keep, f32, bf16, f16 or int4, the last with :g32, :g64 or :g128 and :f16 or :bf16
// GROUP: unknown weight format 'int4:g48'
// PLAIN: unknown weight format 'bf16:g32'
func.func @any() {
  return
}
