// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What a compile will need and what its result will do, from config and
/// headers alone.
///
/// Bytes of a CPU artifact are those of the program that the compiler makes:
/// the model is imported and lowered, only its weights are not made. Everything
/// else is arithmetic on shapes, and marked as a forecast.

#ifndef MOEC_TOOLS_DRIVER_PLAN_H
#define MOEC_TOOLS_DRIVER_PLAN_H

#include "frontends/HuggingFace/Config.h"
#include "runtime/Support/Result.h"
#include "tools/Driver/Chips.h"
#include "tools/Driver/Compilation.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace moec {

/// A way to store the weights of experts.
struct WeightFormat {
  std::string_view name;
  int64_t bits = 0;                     ///< of one element
  int64_t scaleBits = 0;                ///< of one scale; 0: no scales
  int64_t scaleRows = 1, scaleCols = 1; ///< the block that shares a scale; 0 columns: a whole row
  Unit unit = Unit::Bf16;               ///< what multiplies it

  /// Of one matrix, its rows and its scales each padded to whole bytes.
  uint64_t bytes(int64_t rows, int64_t cols) const;
};

std::span<const WeightFormat> weightFormats();
/// Null if there is none of this name.
const WeightFormat *findWeightFormat(std::string_view name);

struct PlanOptions {
  std::string model;          ///< checkpoint directory, or a config.json
  std::string target = "cpu"; ///< or a chip's name
  std::string experts;        ///< format of routed experts; empty: as a compile makes them
  std::string cache = "f32";  ///< format of cache entries
  int64_t devices = 0;        ///< 0: as many as hold the model
  int64_t context = 0;        ///< tokens; 0: what `moec compile` takes
  int64_t maxTokens = 512;    ///< of one run of the program
  PassOptions passes;         ///< of the compile that is planned
  uint64_t diskRate = 0;      ///< bytes/s that a compile reads and writes, together; 0: measured or assumed
  bool measure = false;       ///< take the rates of this machine, those of a compile in the working directory
};

/// One part of the model.
struct PlanPart {
  std::string name;
  int64_t parameters = 0, activeParameters = 0; ///< active: read for one token
  uint64_t checkpointBytes = 0;
  uint64_t bytes = 0, activeBytes = 0; ///< as planned
  std::string aside;                   ///< why a compile leaves it out; empty if it does not
};

/// Where a rate comes from.
enum class RateSource : uint8_t { Assumed, Given, Measured };
/// "assumed", "given", "measured"
std::string_view toString(RateSource source);

/// The model on devices of one kind. Rates are upper limits: nothing but memory and multipliers takes time, and work is
/// spread evenly over devices.
struct PlanPlace {
  /// The share of a memory that can be used: drivers, runtime and communication keep the rest for themselves.
  static constexpr double usable = 0.9;

  Chip chip;
  uint64_t weightBytes = 0, cacheBytes = 0, arenaBytes = 0;
  int64_t devices = 0;
  bool fits = false;
  /// Tokens/s of one sequence: made at the end of the context, and read on the way there. 0: the chip has no rates.
  double decode = 0, prefill = 0;
  bool decodeByMemory = false, prefillByMemory = false; ///< memory, not arithmetic, is the limit
};

struct Plan {
  hf::ModelConfig config;
  bool hasHeaders = false; ///< else from config.json alone
  std::string target, experts;
  int64_t context = 0, maxTokens = 0;
  std::vector<std::string> unsupported; ///< what moec cannot do yet, as noun phrases or sentences
  std::vector<PlanPart> parts;
  bool exactWeights = false; ///< `bytes` are those of the artifact, else of checkpoint and formats
  bool exactMemory = false;  ///< the same for arena and cache of the target
  int64_t checkpointTensors = 0;
  uint64_t arenaBytes = 0; ///< 0: unknown
  uint64_t cacheBytesPerToken = 0, cacheBytes = 0;
  PlanPlace place;               ///< on the target
  std::vector<PlanPlace> others; ///< on the chips of the table, if the target is this machine
  uint64_t readBytes = 0, writeBytes = 0;
  uint64_t compileRate = 0; ///< bytes/s, read and written together
  RateSource compileRateSource = RateSource::Assumed;
  double compileSeconds = 0; ///< of making the weights

  /// Sums over parts, and what is set aside left out.
  PlanPart total() const;
};

/// Fails on what cannot be understood; what can, but not be compiled yet, is planned and listed as unsupported.
Result<Plan> makePlan(const PlanOptions &options);

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_PLAN_H
