// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "frontends/HuggingFace/Rope.h"
#include "Support.h"

#include <cmath>

using namespace moec;
using namespace moec::hf;

namespace {

/// Published numbers were computed in double; ours pass through a handful of f32 roundings.
constexpr double f32Tolerance = 4e-7;

struct Row {
  const char *model;
  double scale;
  std::vector<std::pair<int, double>> invFreq;
};

class YarnRow : public testing::TestWithParam<Row> {};

TEST_P(YarnRow, MatchesTheFormulas) {
  const Row &row = GetParam();
  ModelConfig config = publishedConfig(row.model);
  EXPECT_NEAR(softmaxScale(config), row.scale, 1e-10);
  RopeTable table = makeRopeTable(config.rope, config.ropeDim);
  ASSERT_EQ(table.invFreq.size(), 32u);
  EXPECT_EQ(table.factor, 1.0);
  for (auto [i, expected] : row.invFreq)
    EXPECT_NEAR(table.invFreq[i] / expected, 1.0, f32Tolerance) << "inv_freq[" << i << "]";
}

const std::vector<std::pair<int, double>> base10000 = {
    {0, 1.0},     {1, 0.7498942093},    {10, 0.05623413252},  {11, 0.03900692657},
    {16, 0.0055}, {22, 1.778279410e-4}, {23, 3.333803580e-5}, {31, 3.333803580e-6}};

INSTANTIATE_TEST_SUITE_P(
    Published, YarnRow,
    testing::Values(Row{"deepseek-v3", 0.1352337789, base10000}, Row{"deepseek-v2-lite", 0.1147213868, base10000},
                    Row{"deepseek-v2", 0.1147213868, base10000},
                    Row{"kimi-k2",
                        0.1308607999,
                        {{1, 0.7131110849}, {19, 1.621759908e-3}, {20, 3.614046774e-5}, {31, 8.764412912e-7}}}));

TEST(Rope, MscaleOfPublishedModels) {
  EXPECT_NEAR(yarnMscale(40, 1.0), 1.3688879454, 5e-11);
  EXPECT_NEAR(yarnMscale(40, 0.707), 1.2608037774, 5e-11);
  EXPECT_NEAR(yarnMscale(32, 1.0), 1.3465735903, 5e-11);
  EXPECT_EQ(yarnMscale(1, 1.0), 1.0);
}

TEST(Rope, PlainFrequenciesAndScale) {
  ModelConfig config = publishedConfig("moonlight-16b");
  RopeTable table = makeRopeTable(config.rope, config.ropeDim);
  EXPECT_EQ(table.factor, 1.0);
  for (int i = 0; i < 32; ++i)
    EXPECT_NEAR(table.invFreq[i] / std::pow(50000.0, -2.0 * i / 64), 1.0, f32Tolerance);
  EXPECT_NEAR(softmaxScale(config), 1 / std::sqrt(192.0), 1e-16);
}

TEST(Rope, LinearScalingStretchesEveryPair) {
  RopeConfig rope;
  rope.type = RopeConfig::Type::Linear;
  rope.factor = 4;
  RopeTable table = makeRopeTable(rope, 8);
  for (int i = 0; i < 4; ++i)
    EXPECT_NEAR(table.invFreq[i] / (std::pow(10000.0, -2.0 * i / 8) / 4), 1.0, f32Tolerance);
  EXPECT_EQ(table.factor, 1.0);
}

/// The attention factor follows transformers: both mscales, or neither.
TEST(Rope, AttentionFactor) {
  RopeConfig rope;
  rope.type = RopeConfig::Type::Yarn;
  rope.factor = 40;
  rope.originalMaxPositions = 4096;
  double g = 0.1 * std::log(40.0) + 1;
  EXPECT_DOUBLE_EQ(makeRopeTable(rope, 64).factor, g);
  rope.mscale = 0.707;
  EXPECT_DOUBLE_EQ(makeRopeTable(rope, 64).factor, g);
  rope.mscaleAllDim = 1.0;
  EXPECT_DOUBLE_EQ(makeRopeTable(rope, 64).factor, (0.0707 * std::log(40.0) + 1) / g);
  rope.mscale = 0;
  EXPECT_DOUBLE_EQ(makeRopeTable(rope, 64).factor, g);
  rope.attentionFactor = 1.5;
  EXPECT_DOUBLE_EQ(makeRopeTable(rope, 64).factor, 1.5);
}

/// Without truncation the ramp runs from corr(beta_fast) = 10.24 to corr(beta_slow) = 22.53 instead of 10 to 23.
TEST(Rope, CorrectionRangeWithoutTruncation) {
  RopeConfig rope = publishedConfig("deepseek-v3").rope;
  rope.truncate = false;
  RopeTable table = makeRopeTable(rope, 64);
  double theta = std::pow(10000.0, -2.0 * 16 / 64);
  auto corr = [](double r) { return 64 * std::log(4096 / (2 * M_PI * r)) / (2 * std::log(10000.0)); };
  double ramp = (16 - corr(32)) / (corr(1) - corr(32));
  EXPECT_NEAR(table.invFreq[16] / (theta * (1 - ramp) + theta / 40 * ramp), 1.0, f32Tolerance);
  EXPECT_NE(table.invFreq[16], makeRopeTable(publishedConfig("deepseek-v3").rope, 64).invFreq[16]);
}

} // namespace
