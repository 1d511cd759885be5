// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// A format for each projection of each expert, by a budget of bytes or of error.

#ifndef MOEC_TOOLS_DRIVER_BUDGET_H
#define MOEC_TOOLS_DRIVER_BUDGET_H

#include "runtime/Support/Json.h"
#include "runtime/Support/Result.h"
#include "tools/Driver/Compilation.h"

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace moec {

struct BudgetOptions {
  /// With a calibration; what it says of experts is replaced, all other formats count as they are.
  CompileOptions compile;
  /// Formats to choose from.
  std::vector<std::string> formats = {"int4:g128", "int4", "int4:zero", "int8:weights", "keep"};
};

/// What was chosen for the experts of one layer.
struct LayerFormats {
  std::string name; ///< "model.layers.3.mlp.experts"
  int64_t experts = 0;
  std::map<std::string, int64_t> gateUp, down; ///< how many experts have each format
  uint64_t bytes = 0;
  double noise = 0;      ///< mean squared norm of what the rounding adds to a token
  double divergence = 0; ///< predicted
};

struct BudgetReport {
  std::vector<LayerFormats> layers;
  std::string formats;   ///< lines of REGEX=FORMAT, for `CompileOptions::formats`
  uint64_t bytes = 0;    ///< of all weights, as they will be
  double divergence = 0; ///< predicted
  std::optional<double> achieved;

  std::string text() const;
  Json json() const;
};

/// What formats cost the experts of a model, and the choice of formats by that. The error of a format is measured, once
/// for any number of choices: each expert runs on what the calibration saw it read, with each
/// format of its projections, and the squares of the differences, times those of the router's weights, are the noise
/// that it adds to the layer's output. What noise of mean square E costs follows from the layer's calibration:
/// `sensitivity * E + tipping * sqrt(E)`. Bytes go first where they avoid most divergence.
class Budget {
public:
  /// Errors: no calibration, or one without sensitivities or of another model; experts that it never saw.
  static Result<Budget> measure(const BudgetOptions &options);
  Budget(Budget &&) noexcept;
  ~Budget();

  /// Exactly one is given: bytes of all weights of the artifact, or mean KLD in nats per token from the model that was
  /// calibrated. Errors: it cannot be met, with the best that can be had.
  Result<BudgetReport> choose(std::optional<uint64_t> bytes, std::optional<double> divergence) const;

private:
  struct Measured;
  explicit Budget(std::unique_ptr<const Measured> measured);
  std::unique_ptr<const Measured> measured;
};

/// Mean KLD in nats per token of the artifact `artifact` from `base` over `tokens`, in chunks as `moe-run perplexity`
/// reads them. Errors: as of loading both.
Result<double> divergenceOf(const std::string &artifact, const std::string &base, const std::vector<int32_t> &tokens,
                            int threads);

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_BUDGET_H
