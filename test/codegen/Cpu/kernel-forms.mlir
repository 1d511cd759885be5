// RUN: emit-kernel %s --emit=mlir | FileCheck %s --check-prefix=MLIR
// RUN: emit-kernel %s --emit=llvm | FileCheck %s --check-prefix=LLVM --implicit-check-not=declare

// One function of the kernel ABI; masked stores for the last 4 of 20 columns; no fast-math, no library calls
// (the only declarations LLVM keeps are intrinsics).
// MLIR-LABEL: llvm.func @add(%{{.*}}: !llvm.ptr, %{{.*}}: !llvm.ptr, %{{.*}}: i64, %{{.*}}: i64)
// MLIR: scf.for
// MLIR: arith.addf %{{.*}}, %{{.*}} : vector<16xf32>
// MLIR: llvm.intr.masked.store
// LLVM-LABEL: define void @add(ptr
// LLVM: fadd <16 x float>
// LLVM: declare void @llvm.masked.store
exec.kernel @add "elementwise" {swiglu = false, width = 20, a_stride = 20, b_stride = 20, out_stride = 20, rows = "T"}
