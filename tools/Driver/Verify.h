// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Proof by running: the reference interpreter before and after every pass, then the artifact, on the same tokens.

#ifndef MOEC_TOOLS_DRIVER_VERIFY_H
#define MOEC_TOOLS_DRIVER_VERIFY_H

#include "runtime/Support/Json.h"
#include "tools/Driver/Compilation.h"

#include <functional>
#include <string>
#include <vector>

namespace mlir {
class OpPassManager;
} // namespace mlir

namespace moec {

struct VerifyOptions {
  CompileOptions compile;
  /// One sequence from position 0; all below the vocabulary. Empty: `count` of them, drawn with `seed`.
  std::vector<int32_t> tokens;
  int64_t count = 32;
  uint64_t seed = 1;
  /// The passes to prove; unset: those of a compile with these options.
  std::function<void(mlir::OpPassManager &)> pipeline;
  /// Whether the artifact is made, in a directory for temporary files, and run too. Only with the passes of a compile.
  bool artifact = true;
};

/// What a step may do to logits.
enum class Proof {
  Exact,   ///< nothing, to the last bit
  Rounded, ///< other roundings in the same sums: at most `kRoundingBound`
  Formats, ///< weights or caches take another format, or activations are rounded: measured, not judged
};

/// The largest difference of a logit that `Proof::Rounded` allows.
inline constexpr double kRoundingBound = 2e-4;

/// One pass that changed the module, or the artifact, against what was before.
struct VerifyStep {
  std::string name; ///< the pass by its argument, or "artifact"
  Proof proof = Proof::Exact;
  double maxAbs = 0;  ///< largest difference of a logit
  double maxRel = 0;  ///< the same, over the largest logit of its row
  double kldMean = 0; ///< mean of the divergence of each token's distribution, in nats
  double sameTop = 1; ///< share of tokens with the same most probable next one
  bool holds = true;
  std::string divergence; ///< where a step that does not hold first differs, both sides; empty for the artifact
};

struct VerifyReport {
  int64_t tokens = 0;
  std::vector<std::string> unchanged; ///< passes that left the module as it was
  std::vector<VerifyStep> steps;

  /// The first step that does not hold, or null.
  const VerifyStep *breach() const;
  std::string text() const;
  Json json() const;
};

/// Fails where the model cannot be read, compiled or run; a step that does not hold is in the report.
Result<VerifyReport> verify(const VerifyOptions &options);

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_VERIFY_H
