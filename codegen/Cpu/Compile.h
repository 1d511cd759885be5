// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// From kernel specs to an ELF shared object for one level of x86-64 or AArch64.
///
/// The object has one exported symbol per kernel (runtime/KernelAbi.h), no
/// dependencies and no undefined symbols. The same kernels and level give the
/// same bytes. Kernels of all levels compute the same bits, payloads of NaN and, in
/// products of bf16 with bf16, numbers below 2^-126 in magnitude aside; AMX sums up
/// the latter in an order of its own (TileProducts.h).

#ifndef MOEC_CODEGEN_CPU_COMPILE_H
#define MOEC_CODEGEN_CPU_COMPILE_H

#include "codegen/Common/KernelSpec.h"
#include "runtime/Support/Result.h"

#include "mlir/IR/OwningOpRef.h"

#include <string>
#include <vector>

namespace mlir {
class MLIRContext;
class ModuleOp;
} // namespace mlir

namespace moec::cpu {

enum class Isa; // codegen/Cpu/KernelBuilder.h

/// How much of a kernel's work is in registers at once. Changes speed, never bits.
struct Tiles {
  int64_t gemmRows = 1;         ///< rows of a full GEMM tile
  int64_t gemmAccumulators = 2; ///< accumulators of kLanes floats that fit beside the rest
  int64_t dotRows = 1;          ///< rows of a full tile of integer products, one vector wide
  bool codesAhead = false;      ///< whether there is room for the codes of 32 columns before any row needs them
  int64_t pairRows = 1;         ///< rows of a full tile of bf16 products
  int64_t pairRowsWide = 1;     ///< and of one that is as wide as a panel
  int64_t valueVectors = 1;     ///< expanded attention: vectors of values summed up together
};

/// A set of instructions that code may use.
struct Level {
  llvm::StringRef name;
  llvm::StringRef architecture; ///< "x86-64", "aarch64"
  llvm::StringRef cpu;          ///< LLVM's name of the CPU
  llvm::StringRef features;     ///< what it has beside, in LLVM's form
  Isa isa;
  Tiles tiles;
};

/// All levels, of each architecture the best first. What a machine must have:
/// - x86-64-v4-amx: all of v4-vnni, AMX_BF16, AMX_TILE, AMX_INT8 (CPUID leaf 7.0 EDX bits 22, 24, 25), and leave of the
/// kernel to use
///   tiles (arch_prctl ARCH_REQ_XCOMP_PERM).
/// - x86-64-v4-vnni: all of v4, AVX512_VNNI (CPUID leaf 7.0 ECX bit 11) and AVX512_BF16 (leaf 7.1 EAX bit 5).
/// - x86-64-v4: all of v3, AVX512F, AVX512BW, AVX512CD, AVX512DQ, AVX512VL (CPUID leaf 7.0 EBX bits
///   16, 30, 28, 17, 31), and XCR0 bits 1, 2, 5, 6, 7.
/// - x86-64-v3-vnni: all of v3, AVX_VNNI (CPUID leaf 7.1 EAX bit 4).
/// - x86-64-v3: AVX2, BMI1, BMI2 (leaf 7.0 EBX bits 5, 3, 8), FMA, MOVBE, OSXSAVE, AVX, F16C, POPCNT, SSE4.2
///   (leaf 1 ECX bits 12, 22, 27, 28, 29, 23, 20), LZCNT (leaf 0x80000001 ECX bit 5), and XCR0 bits 1, 2.
/// - aarch64-i8mm: all of aarch64-dotprod, FEAT_I8MM, FEAT_BF16 (HWCAP2_I8MM, HWCAP2_BF16).
/// - aarch64-dotprod: all of aarch64, FEAT_DotProd (HWCAP_ASIMDDP).
/// - aarch64: Armv8.0 with Advanced SIMD.
llvm::ArrayRef<Level> levels();
/// That of the machine this runs on; "x86-64" where there is no code for it.
llvm::StringRef hostArchitecture();
/// Null if there is no such level.
const Level *findLevel(llvm::StringRef name);

struct Kernel {
  std::string symbol; ///< a C identifier, different for each kernel
  KernelSpec spec;
};

/// Says what is wrong with a spec that this target cannot emit.
Status checkSpec(const KernelSpec &spec);

/// The kernels as MLIR over `scf`, `arith`, `math`, `vector` and `llvm`. Specs must pass `checkSpec`.
mlir::OwningOpRef<mlir::ModuleOp> emitModule(mlir::MLIRContext &context, llvm::ArrayRef<Kernel> kernels,
                                             const Level &level);
/// Everything down to the `llvm` dialect, in place.
Status lowerToLlvm(mlir::ModuleOp module);

enum class Output {
  LlvmIr,   ///< text, after optimisation
  Assembly, ///< text, AT&T syntax
  Object,   ///< ELF relocatable
};
/// Translates a module from `lowerToLlvm`, optimises it and gives its code.
Result<std::string> generate(mlir::ModuleOp module, const Level &level, Output output);

/// All steps, on several threads: one text or object per part of the kernels. The parts do not depend on
/// the number of threads.
Result<std::vector<std::string>> compileKernels(llvm::ArrayRef<Kernel> kernels, const Level &level, Output output);

/// Links objects into a shared object at `path`, which is replaced. Refuses undefined symbols.
Status linkShared(llvm::ArrayRef<std::string> objects, const std::string &path);

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_COMPILE_H
