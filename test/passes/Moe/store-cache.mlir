// RUN: moe-opt %s -moe-store-cache=format=bf16 | FileCheck %s --check-prefixes=CHECK,BF16
// RUN: moe-opt %s -moe-store-cache | FileCheck %s --check-prefixes=CHECK,F32
// RUN: moe-opt %s -moe-optimize=cache=bf16 | FileCheck %s --check-prefixes=CHECK,BF16
// RUN: not moe-opt %s -moe-store-cache=format=fp4 2>&1 | FileCheck %s --check-prefix=BAD
// RUN: not moe-opt %s -moe-optimize=cache=fp4 2>&1 | FileCheck %s --check-prefix=BAD
// BAD: format of caches is 'fp4', expected f32 or bf16

// CHECK: moe.cache @kv.0 width 40
// BF16-SAME: of bf16
// F32-NOT: of
// CHECK: moe.cache @kv.1 width 40
// BF16-SAME: of bf16
// F32-NOT: of
moe.cache @kv.0 width 40
moe.cache @kv.1 width 40 of bf16
