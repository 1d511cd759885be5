// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The numbers behind a rotary embedding: frequencies, YaRN's factors, the softmax scale.
/// Source: YaRN (arXiv:2309.00071), with the conventions of transformers' yarn initialiser.

#ifndef MOEC_FRONTENDS_HUGGINGFACE_ROPE_H
#define MOEC_FRONTENDS_HUGGINGFACE_ROPE_H

#include "frontends/HuggingFace/Config.h"

#include <vector>

namespace moec::hf {

struct RopeTable {
  /// `ropeDim / 2` entries, computed in f32 step by step as the public implementation does.
  std::vector<float> invFreq;
  /// Multiplies every cosine and sine.
  double factor = 1.0;
};

RopeTable makeRopeTable(const RopeConfig &rope, int64_t dim);

/// YaRN's `g(k)`: 1 without extension, else `0.1 k ln(factor) + 1`.
double yarnMscale(double factor, double k);

/// Multiplies every attention score: `(dn + dr)^-1/2`, times `g(mscale_all_dim)^2` where that key is given.
double softmaxScale(const ModelConfig &config);

} // namespace moec::hf

#endif // MOEC_FRONTENDS_HUGGINGFACE_ROPE_H
