// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Passes over the device program.

#ifndef MOEC_PASSES_EXEC_PASSES_H
#define MOEC_PASSES_EXEC_PASSES_H

#include "dialects/Exec/ExecDialect.h"

#include "mlir/Pass/Pass.h"

namespace mlir::exec {

#define GEN_PASS_DECL
#include "passes/Exec/Passes.h.inc"

#define GEN_PASS_REGISTRATION
#include "passes/Exec/Passes.h.inc"

} // namespace mlir::exec

#endif // MOEC_PASSES_EXEC_PASSES_H
