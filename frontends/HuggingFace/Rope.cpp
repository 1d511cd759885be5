// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

using namespace moec;
using namespace moec::hf;

double hf::yarnMscale(double factor, double k) { return factor <= 1 ? 1.0 : 0.1 * k * std::log(factor) + 1.0; }

/// The (fractional) pair index at which a pair turns `rotations` times over the original context.
static double correctionDim(const RopeConfig &rope, int64_t dim, double rotations) {
  double positions = static_cast<double>(rope.originalMaxPositions);
  return static_cast<double>(dim) * std::log(positions / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

RopeTable hf::makeRopeTable(const RopeConfig &rope, int64_t dim) {
  RopeTable table;
  bool yarn = rope.type == RopeConfig::Type::Yarn;
  double low = 0, high = 0;
  if (yarn) {
    low = correctionDim(rope, dim, rope.betaFast);
    high = correctionDim(rope, dim, rope.betaSlow);
    if (rope.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, static_cast<double>(dim - 1));
    if (low == high)
      high += 0.001; // no division by zero
    if (rope.attentionFactor)
      table.factor = *rope.attentionFactor;
    else if (rope.mscale != 0 && rope.mscaleAllDim != 0)
      table.factor = yarnMscale(rope.factor, rope.mscale) / yarnMscale(rope.factor, rope.mscaleAllDim);
    else
      table.factor = yarnMscale(rope.factor, 1.0);
  }
  for (int64_t i = 0; i < dim / 2; ++i) {
    float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    float period = static_cast<float>(std::pow(rope.theta, static_cast<double>(exponent)));
    float plain = 1.0f / period;
    if (yarn) {
      float stretched = 1.0f / (static_cast<float>(rope.factor) * period);
      float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
      float keep = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
      table.invFreq.push_back(stretched * (1.0f - keep) + plain * keep);
    } else {
      table.invFreq.push_back(plain / static_cast<float>(rope.factor));
    }
  }
  return table;
}

double hf::softmaxScale(const ModelConfig &config) {
  double scale = 1.0 / std::sqrt(static_cast<double>(config.queryDim()));
  if (config.rope.mscaleAllDim == 0)
    return scale;
  double m = yarnMscale(config.rope.factor, config.rope.mscaleAllDim);
  return scale * m * m;
}
