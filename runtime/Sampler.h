// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// From a row of logits to a token.

#ifndef MOEC_RUNTIME_SAMPLER_H
#define MOEC_RUNTIME_SAMPLER_H

#include "runtime/Support/Result.h"

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace moec {

/// xoshiro256** 1.0 (Blackman and Vigna, 2018), its state filled by splitmix64
/// from a seed: the same numbers on every machine.
class Random {
public:
  explicit Random(uint64_t seed);
  uint64_t next();
  /// Uniform in [0, 1): the high 53 bits of `next`, times 2^-53.
  double uniform();

private:
  std::array<uint64_t, 4> state;
};

struct SamplingOptions {
  double temperature = 0; ///< 0: greedy
  double topP = 1;        ///< in (0, 1]; 1: no cut
  int64_t topK = 0;       ///< 0: no cut
  uint64_t seed = 0;

  /// Whether the values are in range.
  Status check() const;
  /// Whether the token with the greatest logit is taken always.
  bool isGreedy() const { return temperature == 0 || topK == 1; }
};

/// Draws tokens. In this order: divide logits by the temperature, keep the
/// `topK` most probable tokens, of these keep the fewest most probable whose
/// probabilities sum to at least `topP`, draw one of them by one number of
/// `Random`. Equal logits are ranked by id, lower first; NaN counts as
/// impossible. Sums are in double precision and a fixed order (the whole
/// vocabulary by id, cuts by rank), and exponentials are our own, so the same
/// logits and seed give the same token everywhere.
class Sampler {
public:
  /// `options` must pass `check`.
  explicit Sampler(const SamplingOptions &options) : options(options), random(options.seed) {}

  /// The next token. Fails if no logit is a number above -infinity.
  Result<int32_t> sample(std::span<const float> logits);
  /// The same where the logits' `argmax` is known and is taken.
  static Result<int32_t> take(int32_t argmax);

private:
  SamplingOptions options;
  Random random;
  std::vector<std::pair<float, int32_t>> ranked;
};

/// Index of the greatest logit, the lowest of equals; -1 if all are NaN or -infinity.
int32_t argmax(std::span<const float> logits);

/// -ln of the probability that softmax(logits) gives `token`.
double negativeLogProbability(std::span<const float> logits, int32_t token);

/// The Kullback-Leibler divergence `sum p ln(p / q)` in nats, of q = softmax(logits) from p = softmax(base), which have
/// one size: 0 where they are equal, infinite where q is 0 and p is not.
double klDivergence(std::span<const float> base, std::span<const float> logits);

} // namespace moec

#endif // MOEC_RUNTIME_SAMPLER_H
