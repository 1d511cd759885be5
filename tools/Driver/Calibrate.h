// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// A text read by an artifact while what its weights are multiplied with is
/// kept, for quantizers that look at more than the weights: docs/calibration.md.

#ifndef MOEC_TOOLS_DRIVER_CALIBRATE_H
#define MOEC_TOOLS_DRIVER_CALIBRATE_H

#include "runtime/Support/Json.h"
#include "runtime/Support/Result.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace moec {

struct CalibrateOptions {
  std::string artifact, file, output;
  int64_t tokens = 0; ///< to read at most, in whole chunks; 0: the whole text
  int threads = 0;    ///< 0: the physical cores available; results do not depend on it
  bool sensitivity = true;
  /// Called after each chunk.
  std::function<void(int64_t doneTokens, int64_t totalTokens)> progress;
};

/// The experts of one layer, as the text used them.
struct ExpertUse {
  std::string name; ///< "model.layers.1.mlp.experts"
  int64_t topk = 0;
  std::vector<int64_t> counts;       ///< of each expert: tokens that chose it
  std::optional<double> sensitivity; ///< nats per token over the mean squared norm of noise in their output
  std::optional<double> tipping;     ///< the same of tipped choices, over the root of that
};

struct CalibrateReport {
  /// An expert that fewer tokens chose saw too little. The error of a weight's
  /// column is weighed by the mean square of its inputs, and such a mean over n
  /// draws of a normal distribution has a relative deviation of sqrt(2 / n):
  /// an eighth here, and more than that weighs chance.
  static constexpr int64_t enough = 128;
  /// The noise for sensitivities is read by the first so many tokens.
  static constexpr int64_t sensitivityTokens = 2048;

  std::string output;
  uint64_t bytes = 0; ///< of the file
  int64_t tokens = 0; ///< that the model read
  std::vector<ExpertUse> layers;

  /// A table and a sentence on who saw too little.
  std::string text() const;
  Json json() const;
};

/// Runs the artifact over the text and writes the calibration; `output` appears
/// whole or not at all. Memory does not grow with the text. The same bytes for any number of threads.
Result<CalibrateReport> calibrate(const CalibrateOptions &options);

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_CALIBRATE_H
