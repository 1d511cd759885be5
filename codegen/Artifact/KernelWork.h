// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What a launch of a kernel computes and reads at least, for whoever compares
/// its time with what the machine can do.

#ifndef MOEC_CODEGEN_ARTIFACT_KERNELWORK_H
#define MOEC_CODEGEN_ARTIFACT_KERNELWORK_H

#include "codegen/Common/KernelSpec.h"
#include "runtime/Support/Json.h"

namespace moec {

/// The object `work` of a kernel in a manifest (docs/artifact.md). Products with weights and attention count; norms,
/// rotations, activations and the choice of experts, a thousandth of that, do not: of their kernels it is empty.
Json workOf(const KernelSpec &spec);

} // namespace moec

#endif // MOEC_CODEGEN_ARTIFACT_KERNELWORK_H
