// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Sampler.h"

#include "runtime/Support/SplitMix.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <limits>

namespace moec {

Random::Random(uint64_t seed) {
  for (uint64_t &word : state) {
    word = splitMix(seed);
    seed += kSplitMixStep;
  }
}

uint64_t Random::next() {
  const uint64_t result = std::rotl(state[1] * 5, 7) * 9;
  const uint64_t shifted = state[1] << 17;
  state[2] ^= state[0];
  state[3] ^= state[1];
  state[1] ^= state[2];
  state[0] ^= state[3];
  state[2] ^= shifted;
  state[3] = std::rotl(state[3], 45);
  return result;
}

double Random::uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

Status SamplingOptions::check() const {
  if (!std::isfinite(temperature) || temperature < 0)
    return Error{"temperature is " + std::to_string(temperature) + ", expected 0 (greedy) or more"};
  if (!(topP > 0 && topP <= 1))
    return Error{"top-p is " + std::to_string(topP) + ", expected more than 0 and at most 1"};
  if (topK < 0)
    return Error{"top-k is " + std::to_string(topK) + ", expected 0 (all) or more"};
  return success();
}

int32_t argmax(std::span<const float> logits) {
  int32_t best = -1;
  float value = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] > value) {
      best = i;
      value = logits[i];
    }
  return best;
}

/// 1/13! to 1/0!
static constexpr double reciprocalFactorials[] = {
    1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0,
    1 / 720.0,        1 / 120.0,       1 / 24.0,       1 / 6.0,       1 / 2.0,      1.0,         1.0};

/// e^x for x <= 0 from additions and multiplications alone, so that every
/// machine gives the same bits; within 1e-15 of the truth, which is more than
/// drawing needs.
static double exponential(double x) {
  if (!(x > -700))
    return 0;
  constexpr double ln2High = 0x1.62e42feep-1, ln2Low = 0x1.a39ef35793c76p-33;
  const double k = std::floor(x * 0x1.71547652b82fep0 + 0.5);
  const double r = (x - k * ln2High) - k * ln2Low; // |r| <= ln(2) / 2
  double sum = 0;
  for (double coefficient : reciprocalFactorials) // Taylor; the next term is below 1e-17
    sum = sum * r + coefficient;
  return std::ldexp(sum, static_cast<int>(k));
}

Result<int32_t> Sampler::take(int32_t argmax) {
  if (argmax < 0)
    return Error{"no logit of the model is a number above -infinity"};
  return argmax;
}

Result<int32_t> Sampler::sample(std::span<const float> logits) {
  MOEC_TRY(const int32_t best, take(argmax(logits)));
  if (options.isGreedy() || std::isinf(logits[best]))
    return best;

  ranked.clear();
  for (size_t i = 0; i < logits.size(); ++i)
    if (!std::isnan(logits[i]) && !std::isinf(logits[i]))
      ranked.emplace_back(logits[i], i);
  const auto before = [](const auto &a, const auto &b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  const auto weight = [&](size_t i) {
    return exponential((double(ranked[i].first) - double(logits[best])) / options.temperature);
  };
  // Big vocabularies are ranked only as far as the draw looks.
  size_t count = ranked.size(), sorted = 0;
  const auto rankTo = [&](size_t wanted) {
    while (sorted < wanted) {
      const size_t end = std::min(count, std::max<size_t>(64, sorted * 8));
      if (end < ranked.size())
        std::nth_element(ranked.begin() + sorted, ranked.begin() + end - 1, ranked.end(), before);
      std::sort(ranked.begin() + sorted, ranked.begin() + end, before);
      sorted = end;
    }
  };
  if (options.topK > 0 && static_cast<size_t>(options.topK) < count) {
    count = options.topK;
    rankTo(count);
  }
  double total = 0;
  for (size_t i = 0; i < count; ++i)
    total += weight(i);
  if (options.topP < 1) {
    const double wanted = options.topP * total;
    double sum = 0;
    size_t kept = 0;
    while (kept < count && sum < wanted) {
      rankTo(kept + 1);
      sum += weight(kept++);
    }
    count = kept;
    total = sum;
  }
  const double target = random.uniform() * total;
  double sum = 0;
  size_t last = 0; // rounding may leave the target beyond the last sum
  for (size_t i = 0; i < count; ++i) {
    rankTo(i + 1);
    const double mass = weight(i);
    if (mass > 0)
      last = i;
    sum += mass;
    if (target < sum)
      break;
  }
  return ranked[last].second;
}

/// ln of the sum of exp(logits).
static double logSumExp(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits)
    sum += std::exp(double(logit) - most);
  return std::log(sum) + most;
}

double negativeLogProbability(std::span<const float> logits, int32_t token) {
  assert(token >= 0 && static_cast<size_t>(token) < logits.size());
  return logSumExp(logits) - double(logits[token]);
}

double klDivergence(std::span<const float> base, std::span<const float> logits) {
  assert(base.size() == logits.size());
  const double baseTotal = logSumExp(base), total = logSumExp(logits);
  double sum = 0;
  for (size_t i = 0; i < base.size(); ++i) {
    const double logP = double(base[i]) - baseTotal, logQ = double(logits[i]) - total;
    if (const double p = std::exp(logP); p > 0)
      sum += p * (logP - logQ);
  }
  return std::max(sum, 0.0); // rounding may leave a little less
}

} // namespace moec
