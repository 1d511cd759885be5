// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef MOEC_TOOLS_MOEC_INSPECT_H
#define MOEC_TOOLS_MOEC_INSPECT_H

#include "runtime/Artifact.h"

#include <iosfwd>
#include <string>

namespace moec {

/// Prints what is in an artifact as tables: model, code, kernels, memory plan, program, weights.
void printArtifact(const Artifact &artifact, std::ostream &out);
/// The same as one JSON object.
std::string artifactJson(const Artifact &artifact);

} // namespace moec

#endif // MOEC_TOOLS_MOEC_INSPECT_H
