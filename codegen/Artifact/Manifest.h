// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The device program as data: from `exec` IR to the parts of an artifact's
/// manifest that follow from it (docs/artifact.md).

#ifndef MOEC_CODEGEN_ARTIFACT_MANIFEST_H
#define MOEC_CODEGEN_ARTIFACT_MANIFEST_H

#include "runtime/Support/Json.h"

#include "mlir/IR/BuiltinOps.h"

namespace moec {

/// The keys `model`, `sources`, `kernels` and `program` of a manifest, from a module with
/// the attribute `moe.model`, `exec.kernel`s and one `exec.program` on a memory
/// plan. Each launch is checked against its kernel's spec: number, element
/// types and writes of its arguments, and the grid. Fails with a diagnostic.
mlir::FailureOr<Json> buildManifestProgram(mlir::ModuleOp module);

} // namespace moec

#endif // MOEC_CODEGEN_ARTIFACT_MANIFEST_H
