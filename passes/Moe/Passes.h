// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Passes from `moe` to `moe`; what each rewrites is in Passes.td.

#ifndef MOEC_PASSES_MOE_PASSES_H
#define MOEC_PASSES_MOE_PASSES_H

#include "mlir/Pass/Pass.h"

#include <string>
#include <vector>

namespace mlir::moe {

/// What `moe-store-cache` takes for a format: f32, bf16, int8, fp8.
const std::vector<std::string> &cacheFormats();

#define GEN_PASS_DECL
#include "passes/Moe/Passes.h.inc"

#define GEN_PASS_REGISTRATION
#include "passes/Moe/Passes.h.inc"

} // namespace mlir::moe

#endif // MOEC_PASSES_MOE_PASSES_H
