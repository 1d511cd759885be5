// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The lowering from the model (`moe`) to the device program (`exec`).

#ifndef MOEC_PASSES_CONVERSION_MOETOEXEC_MOETOEXEC_H
#define MOEC_PASSES_CONVERSION_MOETOEXEC_MOETOEXEC_H

#include "codegen/Common/Target.h"

#include "mlir/Pass/Pass.h"

namespace mlir::exec {

#define GEN_PASS_DECL
#include "passes/Conversion/MoeToExec/Passes.h.inc"

/// The pass for a target other than the default, the CPU.
std::unique_ptr<Pass> createMoeToExecPass(const MoeToExecPassOptions &options, moec::TargetTraits target);

#define GEN_PASS_REGISTRATION
#include "passes/Conversion/MoeToExec/Passes.h.inc"

} // namespace mlir::exec

#endif // MOEC_PASSES_CONVERSION_MOETOEXEC_MOETOEXEC_H
