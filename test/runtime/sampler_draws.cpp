// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

using namespace moec;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

SamplingOptions options(double temperature, double topP = 1, int64_t topK = 0, uint64_t seed = 0) {
  SamplingOptions result;
  result.temperature = temperature;
  result.topP = topP;
  result.topK = topK;
  result.seed = seed;
  return result;
}

/// How often each token is drawn in `draws`.
std::map<int32_t, int> histogram(const SamplingOptions &how, const std::vector<float> &logits, int draws) {
  Sampler sampler(how);
  std::map<int32_t, int> counts;
  for (int i = 0; i < draws; ++i)
    ++counts[*sampler.sample(logits)];
  return counts;
}

TEST(Random, GivesThePublishedNumbers) {
  // xoshiro256** from the state that splitmix64 makes of seed 0 (its first
  // output, 0xe220a8397b1dcdaf, is a published test value).
  Random random(0);
  EXPECT_EQ(random.next(), 0x99ec5f36cb75f2b4u);
  EXPECT_EQ(random.next(), 0xbf6e1f784956452au);
  EXPECT_EQ(random.next(), 0x1a5f849d4933e6e0u);
}

TEST(Greedy, TakesTheLowestOfEqualLogits) {
  Sampler sampler(options(0));
  EXPECT_EQ(*sampler.sample(std::vector<float>{1, 3, 2, 3}), 1);
  EXPECT_EQ(*sampler.sample(std::vector<float>{-5}), 0);
  EXPECT_EQ(*sampler.sample(std::vector<float>{nan, -inf, -7, nan}), 2);
  EXPECT_EQ(*sampler.sample(std::vector<float>{1, inf, inf}), 1);
}

TEST(Sampling, FollowsTheProbabilities) {
  const std::vector<float> logits = {0, std::log(2.0f), -inf, std::log(5.0f), nan};
  auto counts = histogram(options(1), logits, 80000);
  // Standard deviations are below 140.
  EXPECT_NEAR(counts[0], 10000, 700);
  EXPECT_NEAR(counts[1], 20000, 700);
  EXPECT_NEAR(counts[3], 50000, 700);
  EXPECT_EQ(counts.size(), 3u);
  // At temperature 1/2 probabilities are squared: 1, 4, 25.
  counts = histogram(options(0.5), logits, 60000);
  EXPECT_NEAR(counts[0], 2000, 300);
  EXPECT_NEAR(counts[1], 8000, 600);
  EXPECT_NEAR(counts[3], 50000, 600);
}

TEST(Sampling, TopKKeepsTheLowerOfEqualTokens) {
  const std::vector<float> logits = {1, 2, 2, 2, 0};
  auto counts = histogram(options(1, 1, 2), logits, 1000);
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_GT(counts[1], 400);
  EXPECT_GT(counts[2], 400);
  EXPECT_EQ(histogram(options(1, 1, 1), logits, 100).size(), 1u);
  EXPECT_EQ(histogram(options(1, 1, 100), logits, 1000).size(), 5u);
}

TEST(Sampling, TopPKeepsTheFewestThatReachIt) {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const std::vector<float> logits = {std::log(1.0f), std::log(4.0f), std::log(2.0f), std::log(1.0f)};
  EXPECT_EQ(histogram(options(1, 0.4), logits, 1000).size(), 1u);
  EXPECT_EQ(histogram(options(1, 0.6), logits, 1000).size(), 2u);
  auto three = histogram(options(1, 0.8), logits, 1000);
  EXPECT_EQ(three.size(), 3u);
  EXPECT_EQ(three.count(3), 0u) << "of equal tokens the lower comes first";
  EXPECT_EQ(histogram(options(1, 0.99), logits, 1000).size(), 4u);
  EXPECT_EQ(histogram(options(1, 1e-9), logits, 100).size(), 1u);
}

TEST(Sampling, BigVocabulariesGiveWhatFullRankingGives) {
  // 20000 tokens, so that the ranking runs in several pieces; the naive version beside it.
  std::vector<float> logits(20000);
  Random random(7);
  for (float &logit : logits)
    logit = static_cast<float>(random.uniform() * 12);
  logits[77] = logits[19999];
  for (double topP : {1.0, 0.9, 0.1}) {
    Sampler sampler(options(1.5, topP, 0, 42));
    Random naive(42);
    std::vector<std::pair<float, int32_t>> ranked;
    for (size_t i = 0; i < logits.size(); ++i)
      ranked.emplace_back(-logits[i], i);
    std::sort(ranked.begin(), ranked.end());
    std::vector<double> mass;
    double total = 0;
    for (auto [negative, id] : ranked)
      total += mass.emplace_back(std::exp((ranked[0].first - negative) / 1.5));
    double kept = 0;
    size_t count = 0;
    while (count < mass.size() && kept < topP * total)
      kept += mass[count++];
    for (int draw = 0; draw < 200; ++draw) {
      double target = naive.uniform() * kept;
      size_t i = 0;
      for (double sum = mass[0]; sum <= target && i + 1 < count;)
        sum += mass[++i];
      EXPECT_EQ(*sampler.sample(logits), ranked[i].second) << "top-p " << topP << ", draw " << draw;
    }
  }
}

TEST(Sampling, SeedsDecide) {
  std::vector<float> logits(100, 0.0f);
  auto draw = [&](uint64_t seed) {
    Sampler sampler(options(1, 1, 0, seed));
    std::vector<int32_t> tokens;
    for (int i = 0; i < 20; ++i)
      tokens.push_back(*sampler.sample(logits));
    return tokens;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(Sampling, NothingToChooseFromIsASentence) {
  for (double temperature : {0.0, 1.0}) {
    Sampler sampler(options(temperature));
    auto result = sampler.sample(std::vector<float>{nan, -inf});
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.message(), "no logit of the model is a number above -infinity");
  }
}

TEST(Sampling, OptionsOutOfRangeAreRefused) {
  EXPECT_TRUE(options(0).check().ok());
  EXPECT_TRUE(options(2, 0.5, 40).check().ok());
  EXPECT_FALSE(options(-1).check().ok());
  EXPECT_FALSE(options(nan).check().ok());
  EXPECT_FALSE(options(inf).check().ok());
  EXPECT_FALSE(options(1, 0).check().ok());
  EXPECT_FALSE(options(1, 1.01).check().ok());
  EXPECT_FALSE(options(1, nan).check().ok());
  EXPECT_FALSE(options(1, 1, -1).check().ok());
}

TEST(Perplexity, KlDivergence) {
  // (1/2, 1/4, 1/4) from (1/4, 1/4, 1/2), each with an offset of its own
  const std::vector<float> base = {300 + std::log(2.0f), 300, 300}, other = {-80, -80, -80 + std::log(2.0f)};
  EXPECT_NEAR(klDivergence(base, other), 0.25 * std::log(2.0), 1e-5);
  EXPECT_EQ(klDivergence(base, base), 0);
  const std::vector<float> never = {0, -INFINITY, 0};
  EXPECT_EQ(klDivergence(base, never), INFINITY);
  EXPECT_NEAR(klDivergence(never, std::vector<float>{0, 0, 0}), std::log(1.5), 1e-6);
}

TEST(Perplexity, NegativeLogProbability) {
  // -ln(5 / 8), with an offset that would overflow a naive sum
  const std::vector<float> logits = {300, 300 + std::log(2.0f), 300 + std::log(5.0f)};
  EXPECT_NEAR(negativeLogProbability(logits, 2), std::log(8.0 / 5.0), 1e-5); // f32 logits near 300: ulp 3e-5
}

} // namespace
