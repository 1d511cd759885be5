// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// The reference functions against values derived by hand and against second definitions, written another way.

#include "moe_reference_common.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <numeric>

using namespace mlir::moe::reference;
using mlir::moe::GroupScore;
using mlir::moe::Scoring;
using moec::test::Random;
using testing::ElementsAre;
using testing::Pointwise;

namespace {

/// |found - expected| <= tolerance * max(1, |expected|), element by element.
template <typename A, typename B> void expectNear(const Tensor<A> &found, const Tensor<B> &expected, double tolerance) {
  ASSERT_EQ(found.shape, expected.shape);
  for (size_t i = 0; i < found.data.size(); ++i)
    ASSERT_NEAR(found.data[i], expected.data[i], tolerance * std::max(1.0, std::abs(double(expected.data[i]))))
        << "element " << i;
}

template <typename T> class MoeReference : public testing::Test {
protected:
  /// A few sums of O(100) terms of O(1): 1e-12 and 1e-5 are some hundred ulp.
  static constexpr double tolerance = std::is_same_v<T, double> ? 1e-12 : 1e-5;
};
using Precisions = testing::Types<float, double>;
TYPED_TEST_SUITE(MoeReference, Precisions);

IndexTensor indices(std::vector<int32_t> values) {
  int64_t size = values.size();
  return IndexTensor({size}, std::move(values));
}

//===----------------------------------------------------------------------===//
// Rows, sums, norms
//===----------------------------------------------------------------------===//

TYPED_TEST(MoeReference, EmbedTakesRowsOfTheTable) {
  Tensor<TypeParam> table({3, 2}, {1, 2, 3, 4, 5, 6});
  EXPECT_EQ(embed(table, indices({2, 0, 2})), Tensor<TypeParam>({3, 2}, {5, 6, 1, 2, 5, 6}));
}

TYPED_TEST(MoeReference, GatherRowsOfNoneIsEmpty) {
  Tensor<TypeParam> x({3, 2}, {1, 2, 3, 4, 5, 6});
  EXPECT_EQ(gatherRows(x, indices({})), Tensor<TypeParam>({0, 2}, {}));
  EXPECT_EQ(gatherRows(x, indices({1})), Tensor<TypeParam>({1, 2}, {3, 4}));
}

TYPED_TEST(MoeReference, LinearMultipliesByTheTransposedWeight) {
  Tensor<TypeParam> x({2, 2}, {1, 2, 3, 4}), weight({3, 2}, {1, 0, 0, 1, 1, -1});
  EXPECT_EQ(linear(x, weight), Tensor<TypeParam>({2, 3}, {1, 2, -1, 3, 4, -1}));
  Tensor<TypeParam> residual({2, 3}, {10, 20, 30, 40, 50, 60});
  EXPECT_EQ(linear(x, weight, &residual), Tensor<TypeParam>({2, 3}, {11, 22, 29, 43, 54, 59}));
}

TYPED_TEST(MoeReference, SwigluIsFiniteForLargeGates) {
  Tensor<TypeParam> gate({1, 4}, {0, 1, -1000, 1000}), up({1, 4}, {7, 2, 5, 3});
  // silu(1) = 1 / (1 + e^-1)
  expectNear(swiglu(gate, up), Tensor<double>({1, 4}, {0, 2 * 0.73105857863000487925, 0, 3000}), this->tolerance);
}

TYPED_TEST(MoeReference, GateUpIsTheFusedForm) {
  Random random(1);
  auto x = random.tensor<TypeParam>({3, 5}), gate = random.tensor<TypeParam>({4, 5}),
       up = random.tensor<TypeParam>({4, 5});
  Tensor<double> expected({3, 4});
  for (int t = 0; t < 3; ++t)
    for (int f = 0; f < 4; ++f) {
      double g = 0, u = 0;
      for (int d = 0; d < 5; ++d) {
        g += double(x.row(t)[d]) * gate.row(f)[d];
        u += double(x.row(t)[d]) * up.row(f)[d];
      }
      expected.row(t)[f] = g / (1 + std::exp(-g)) * u;
    }
  expectNear(gateUp(x, gate, up), expected, this->tolerance);
  EXPECT_EQ(gateUp(x, gate, up), swiglu(linear(x, gate), linear(x, up)));
}

TYPED_TEST(MoeReference, Add) {
  EXPECT_EQ(add(Tensor<TypeParam>({1, 2}, {1, 2}), Tensor<TypeParam>({1, 2}, {3, -5})),
            Tensor<TypeParam>({1, 2}, {4, -3}));
}

TYPED_TEST(MoeReference, RmsNorm) {
  // mean(3^2, 4^2) = 12.5; with eps 12.5 the root is 5.
  Tensor<TypeParam> x({2, 2}, {3, 4, 0, 0}), weight({2}, {1, 10});
  expectNear(rmsNorm(x, &weight, 12.5), Tensor<double>({2, 2}, {0.6, 8, 0, 0}), this->tolerance);
  expectNear(rmsNorm<TypeParam>(x, nullptr, 12.5), Tensor<double>({2, 2}, {0.6, 0.8, 0, 0}), this->tolerance);
  double root = std::sqrt(12.5 + 1e-6);
  expectNear(rmsNorm(x, &weight, 1e-6), Tensor<double>({2, 2}, {3 / root, 40 / root, 0, 0}), this->tolerance);
}

TYPED_TEST(MoeReference, ReshapeAndSplitKeepHeadsApart) {
  Tensor<TypeParam> x({2, 6}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  Tensor<TypeParam> heads = reshape(x, {2, 2, 3});
  EXPECT_EQ(heads.row(1, 1)[0], 9);
  std::vector<Tensor<TypeParam>> parts = split(heads, {1, 2});
  EXPECT_THAT(parts, ElementsAre(Tensor<TypeParam>({2, 2, 1}, {0, 3, 6, 9}),
                                 Tensor<TypeParam>({2, 2, 2}, {1, 2, 4, 5, 7, 8, 10, 11})));
  EXPECT_EQ(split(x, {6}).front(), x);
}

//===----------------------------------------------------------------------===//
// Rotary embedding
//===----------------------------------------------------------------------===//

TYPED_TEST(MoeReference, RopeTurnsNeighbouringChannels) {
  // A quarter turn for the first pair, none for the second, the same for both heads; position 0 turns nothing.
  Tensor<TypeParam> x({2, 2, 4}, {1, 0, 5, 6, 0, 1, 7, 8, 1, 0, 5, 6, 0, 1, 7, 8});
  Tensor<double> expected({2, 2, 4}, {1, 0, 5, 6, 0, 1, 7, 8, 0, 1, 5, 6, -1, 0, 7, 8});
  float quarter = float(M_PI / 2);
  expectNear(rope(x, indices({0, 1}), {quarter, 0}, 1), expected, 1e-7);
}

TYPED_TEST(MoeReference, RopeIsComplexMultiplication) {
  Random random(2);
  auto x = random.tensor<TypeParam>({3, 6});
  std::vector<float> invFreq = {1.0f, 0.3f, 0.01f};
  std::vector<int32_t> positions = {0, 17, 12345};
  Tensor<double> expected({3, 6});
  for (int t = 0; t < 3; ++t)
    for (int i = 0; i < 3; ++i) {
      float angle = float(positions[t]) * invFreq[i];
      auto y = std::complex<double>(x.row(t)[2 * i], x.row(t)[2 * i + 1]) * std::polar(1.25, double(angle));
      expected.row(t)[2 * i] = y.real();
      expected.row(t)[2 * i + 1] = y.imag();
    }
  expectNear(rope(x, indices(positions), invFreq, 1.25), expected, this->tolerance);
}

TEST(MoeReferenceRope, AngleIsRoundedToFloatInDoubleToo) {
  // 12345 * 0.3f is no float: the rounded and the exact angle differ by 1e-4.
  Tensor<double> y = rope(Tensor<double>({1, 2}, {1, 0}), indices({12345}), {0.3f}, 1);
  float rounded = 12345.0f * 0.3f;
  EXPECT_EQ(y.data[0], std::cos(double(rounded)));
  EXPECT_GT(std::abs(y.data[0] - std::cos(12345.0 * double(0.3f))), 1e-6);
}

//===----------------------------------------------------------------------===//
// Cache
//===----------------------------------------------------------------------===//

TEST(MoeReferenceCache, GivesTheWholeContextOfTheSequencesOfTheStep) {
  Cache<float> cache;
  Tensor<float> c({3, 1}, {10, 20, 30}), k({3, 2}, {1, 2, 3, 4, 5, 6});
  auto first = cacheAppend<float>(cache, {c, k}, indices({0, 1, 0}), indices({5, 5, 2}));
  ASSERT_TRUE(first) << first.message();
  EXPECT_EQ(first->slots, indices({2, 5, 5}));
  EXPECT_EQ(first->positions, indices({0, 0, 1}));
  EXPECT_EQ(first->parts[0], Tensor<float>({3, 1}, {30, 10, 20}));
  EXPECT_EQ(first->parts[1], Tensor<float>({3, 2}, {5, 6, 1, 2, 3, 4}));

  // Slot 5 goes on, its position 1 is replaced; slot 2 is no part of the step.
  auto second = cacheAppend<float>(cache, {Tensor<float>({2, 1}, {40, 50}), Tensor<float>({2, 2}, {7, 8, 9, 10})},
                                   indices({2, 1}), indices({5, 5}));
  ASSERT_TRUE(second) << second.message();
  EXPECT_EQ(second->slots, indices({5, 5, 5}));
  EXPECT_EQ(second->positions, indices({0, 1, 2}));
  EXPECT_EQ(second->parts[0], Tensor<float>({3, 1}, {10, 50, 40}));

  // Going back shows nothing of what lies behind.
  auto third = cacheAppend<float>(cache, {Tensor<float>({1, 1}, {60}), Tensor<float>({1, 2}, {0, 0})}, indices({0}),
                                  indices({5}));
  ASSERT_TRUE(third) << third.message();
  EXPECT_EQ(third->parts[0], Tensor<float>({1, 1}, {60}));
}

TEST(MoeReferenceCache, RefusesHolesAndDoublesAndKeepsItsState) {
  Cache<double> cache;
  Tensor<double> entries({2, 1}, {1, 2});
  auto hole = cacheAppend<double>(cache, {entries}, indices({0, 2}), indices({3, 3}));
  ASSERT_FALSE(hole);
  EXPECT_EQ(hole.message(), "slot 3 reaches position 2, but position 1 was never given");
  auto twice = cacheAppend<double>(cache, {entries}, indices({0, 0}), indices({3, 3}));
  ASSERT_FALSE(twice);
  EXPECT_EQ(twice.message(), "slot 3 has position 0 twice in one step");
  EXPECT_TRUE(cache.empty());
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

TYPED_TEST(MoeReference, AttentionByHand) {
  // Two queries of slot 1 at positions 0 and 1; a row of slot 0 that neither may see.
  Tensor<TypeParam> query({2, 1, 1}, {1, 1}), ropeQuery({2, 1, 1}, {2, 2});
  Tensor<TypeParam> key({3, 1, 1}, {50, 3, 1}), ropeKey({3, 1}, {50, 0, 1}), value({3, 1, 2}, {9, 9, 4, 8, 0, 16});
  Tensor<TypeParam> y = attention(query, ropeQuery, key, ropeKey, value, indices({0, 1}), indices({1, 1}),
                                  indices({0, 0, 1}), indices({0, 1, 1}), 1);
  // Both scores of the second query are 3: the mean. With scale ln 3 and rope key 0 they are 3 ln 3 and ln 3: 9 to 1.
  expectNear(y, Tensor<double>({2, 1, 2}, {4, 8, 2, 12}), this->tolerance);
  ropeKey.data[2] = 0;
  y = attention(query, ropeQuery, key, ropeKey, value, indices({0, 1}), indices({1, 1}), indices({0, 0, 1}),
                indices({0, 1, 1}), std::log(3.0));
  expectNear(y, Tensor<double>({2, 1, 2}, {4, 8, 3.6, 8.8}), this->tolerance);
}

TYPED_TEST(MoeReference, AttentionOfLargeScoresIsFinite) {
  Tensor<TypeParam> query({1, 1, 1}, {100}), rotary({1, 1, 1}, {0});
  Tensor<TypeParam> key({2, 1, 1}, {100, -100}), ropeKey({2, 1}), value({2, 1, 1}, {3, 5});
  Tensor<TypeParam> y =
      attention(query, rotary, key, ropeKey, value, indices({1}), indices({0}), indices({0, 1}), indices({0, 0}), 1);
  EXPECT_EQ(y.data[0], 3);
}

/// One layer of multi-head latent attention with random weights, in both forms.
template <typename T> struct Mla {
  static constexpr int64_t heads = 3, nope = 5, rotary = 4, value = 6, rank = 7;
  static constexpr double scale = 0.7;
  Tensor<T> kvB; ///< [heads * (nope + value), rank], as checkpoints hold it
  Tensor<T> wUk{{heads, nope, rank}}, wUv{{heads, value, rank}};
  Cache<T> expandedCache, absorbedCache;

  explicit Mla(Random &random) : kvB(random.tensor<T>({heads * (nope + value), rank})) {
    for (int64_t h = 0; h < heads; ++h) {
      std::copy_n(kvB.row(h * (nope + value)), nope * rank, wUk.row(h));
      std::copy_n(kvB.row(h * (nope + value) + nope), value * rank, wUv.row(h));
    }
  }

  /// What a step is given for each token.
  struct Step {
    Tensor<T> query, ropeQuery, latent, ropeKey;
    IndexTensor positions, slots;
  };

  static Step random(Random &random, std::vector<int32_t> positions, std::vector<int32_t> slots) {
    int64_t tokens = positions.size();
    return {random.tensor<T>({tokens, heads, nope}), random.tensor<T>({tokens, heads, rotary}),
            random.tensor<T>({tokens, rank}),        random.tensor<T>({tokens, rotary}),
            indices(std::move(positions)),           indices(std::move(slots))};
  }

  Tensor<T> expanded(const Step &step) {
    auto context = cacheAppend<T>(expandedCache, {step.latent, step.ropeKey}, step.positions, step.slots);
    EXPECT_TRUE(context);
    int64_t size = context->positions.dim(0);
    auto parts = split(reshape(linear(context->parts[0], kvB), {size, heads, nope + value}), {nope, value});
    return attention(step.query, step.ropeQuery, parts[0], context->parts[1], parts[1], step.positions, step.slots,
                     context->positions, context->slots, scale);
  }

  Tensor<T> absorbed(const Step &step) {
    auto y = mlaAttention(absorbedCache, step.query, step.ropeQuery, step.latent, step.ropeKey, wUk, wUv,
                          step.positions, step.slots, scale);
    EXPECT_TRUE(y);
    return std::move(*y);
  }
};

TYPED_TEST(MoeReference, MlaAttentionEqualsExpandedAttentionOverRaggedSteps) {
  Random random(3);
  Mla<TypeParam> mla(random);
  std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> steps = {
      {{0, 0, 1, 2, 1, 3, 2, 4}, {2, 0, 2, 0, 0, 2, 2, 2}}, // two prefills, tokens mixed
      {{3, 5}, {0, 2}},                                     // both decode
      {{0, 6, 1, 2, 3}, {7, 2, 7, 7, 7}},                   // a decode beside a new prefill
      {{2, 1}, {2, 2}},                                     // slot 2 goes back and replaces
      {{}, {}},
  };
  for (auto &[positions, slots] : steps) {
    auto step = Mla<TypeParam>::random(random, positions, slots);
    expectNear(mla.absorbed(step), mla.expanded(step), this->tolerance);
  }
}

TYPED_TEST(MoeReference, ExpandedFormIsThatOfTheDefinitionForRunsThatAreLongEnough) {
  Random random(11);
  Mla<TypeParam> mla(random);
  // Runs of 3, 1, 2 and 4 tokens.
  auto step = Mla<TypeParam>::random(random, {0, 1, 2, 0, 3, 4, 1, 2, 3, 4}, {2, 2, 2, 0, 2, 2, 0, 0, 0, 0});
  auto attend = [&](int64_t expandedFrom) {
    Cache<TypeParam> cache;
    auto y = mlaAttention(cache, step.query, step.ropeQuery, step.latent, step.ropeKey, mla.wUk, mla.wUv,
                          step.positions, step.slots, mla.scale, expandedFrom);
    EXPECT_TRUE(y);
    return std::move(*y);
  };
  Tensor<TypeParam> absorbed = mla.absorbed(step), expanded = mla.expanded(step), mixed = attend(3);
  EXPECT_EQ(attend(0).data, absorbed.data);
  EXPECT_EQ(attend(1).data, expanded.data);
  EXPECT_EQ(attend(5).data, absorbed.data);
  EXPECT_NE(absorbed.data, expanded.data);
  for (int64_t t = 0; t < 10; ++t) {
    const Tensor<TypeParam> &form = t < 3 || t >= 6 ? expanded : absorbed;
    for (int64_t h = 0; h < mla.heads; ++h)
      EXPECT_TRUE(std::equal(mixed.row(t, h), mixed.row(t, h) + mla.value, form.row(t, h))) << "token " << t;
  }
}

TYPED_TEST(MoeReference, AttentionDoesNotDependOnHowASequenceIsCut) {
  Random random(4);
  std::vector<int32_t> positions(20), slots(20, 1);
  std::iota(positions.begin(), positions.end(), 0);
  auto whole = Mla<TypeParam>::random(random, positions, slots);
  Mla<TypeParam> model(random);
  Tensor<TypeParam> expanded = Mla<TypeParam>(model).expanded(whole), absorbed = Mla<TypeParam>(model).absorbed(whole);
  for (int64_t chunk : {1, 7}) {
    Mla<TypeParam> cut = model;
    std::vector<TypeParam> expandedRows, absorbedRows;
    for (int64_t begin = 0; begin < 20; begin += chunk) {
      std::vector<int32_t> rows;
      for (int64_t t = begin; t < std::min<int64_t>(20, begin + chunk); ++t)
        rows.push_back(t);
      auto take = [&](const Tensor<TypeParam> &x) {
        std::vector<int64_t> shape = x.shape;
        Tensor<TypeParam> flat = gatherRows(reshape(x, {x.dim(0), x.rowSize()}), indices(rows));
        shape[0] = rows.size();
        return reshape(flat, shape);
      };
      typename Mla<TypeParam>::Step step{take(whole.query),  take(whole.ropeQuery),
                                         take(whole.latent), take(whole.ropeKey),
                                         indices(rows),      indices(std::vector<int32_t>(rows.size(), 1))};
      for (TypeParam v : cut.expanded(step).data)
        expandedRows.push_back(v);
      for (TypeParam v : cut.absorbed(step).data)
        absorbedRows.push_back(v);
    }
    // Bit for bit: each row is computed alone, in the order of positions.
    EXPECT_EQ(expandedRows, expanded.data) << "chunks of " << chunk;
    EXPECT_EQ(absorbedRows, absorbed.data) << "chunks of " << chunk;
  }
}

//===----------------------------------------------------------------------===//
// Router
//===----------------------------------------------------------------------===//

double logit(double p) { return std::log(p / (1 - p)); }

TYPED_TEST(MoeReference, RouteGreedySoftmaxIsOverAllExperts) {
  std::vector<TypeParam> logits;
  for (double p : {0.1, 0.4, 0.2, 0.3})
    logits.push_back(std::log(p) + 3);
  auto routing = route<TypeParam>({{1, 4}, logits}, nullptr, {.topk = 2, .scale = 2});
  EXPECT_THAT(routing.experts.data, ElementsAre(1, 3));
  expectNear(routing.weights, Tensor<double>({1, 2}, {0.8, 0.6}), this->tolerance);
}

TYPED_TEST(MoeReference, RouteTiesGoToTheLowerIndex) {
  Tensor<TypeParam> logits({2, 6}, {1, 1, 1, 1, 1, 1, 0, 2, 2, 1, 2, 1});
  auto routing = route<TypeParam>(logits, nullptr, {.scoring = Scoring::Sigmoid, .topk = 4});
  EXPECT_THAT(routing.experts.data, ElementsAre(0, 1, 2, 3, 1, 2, 4, 3));
  // Groups tie as well: {0, 1}, {2, 3}, {4, 5} all have a largest 1.
  routing = route<TypeParam>({{1, 6}, {0, 1, 1, 0, 1, 0}}, nullptr,
                             {.scoring = Scoring::Sigmoid, .topk = 2, .groups = 3, .topkGroups = 2});
  EXPECT_THAT(routing.experts.data, ElementsAre(1, 2));
}

TYPED_TEST(MoeReference, RouteBiasSteersButDoesNotWeigh) {
  std::vector<TypeParam> logits = {TypeParam(logit(0.9)), TypeParam(logit(0.5)), TypeParam(logit(0.1))};
  Tensor<TypeParam> bias({3}, {-1, 0, 1});
  auto routing = route<TypeParam>({{1, 3}, logits}, &bias,
                                  {.scoring = Scoring::Sigmoid, .topk = 2, .normalize = true, .scale = 2.5});
  // Biased: -0.1, 0.5, 1.1. Weights 0.1 and 0.5 over their sum, times 2.5.
  EXPECT_THAT(routing.experts.data, ElementsAre(2, 1));
  expectNear(routing.weights, Tensor<double>({1, 2}, {0.25 / 0.6, 1.25 / 0.6}), this->tolerance);
}

TYPED_TEST(MoeReference, RouteDroppedGroupsLoseAgainstNegativeScores) {
  // All biased scores are negative: were dropped experts 0, they would win.
  Tensor<TypeParam> logits({1, 4}, {0, 0, 1, -1}), bias({4}, {-9, -9, -8, -8});
  auto routing = route<TypeParam>(
      logits, &bias,
      {.scoring = Scoring::Sigmoid, .topk = 2, .groups = 2, .topkGroups = 1, .groupScore = GroupScore::Top2Sum});
  EXPECT_THAT(routing.experts.data, ElementsAre(2, 3));
}

TYPED_TEST(MoeReference, RouteGroupsByMaxOrByTheSumOfTwo) {
  std::vector<TypeParam> logits;
  for (double p : {0.9, 0.1, 0.2, 0.6, 0.6, 0.01})
    logits.push_back(logit(p));
  RouteOptions options{.scoring = Scoring::Sigmoid, .topk = 1, .groups = 2, .topkGroups = 1};
  options.groupScore = GroupScore::Max;
  EXPECT_EQ(route<TypeParam>({{1, 6}, logits}, nullptr, options).experts.data[0], 0);
  options.groupScore = GroupScore::Top2Sum; // 1.1 against 1.2
  EXPECT_EQ(route<TypeParam>({{1, 6}, logits}, nullptr, options).experts.data[0], 3);
}

TYPED_TEST(MoeReference, RouteNormalizingNothingGivesNothing) {
  Tensor<TypeParam> logits({1, 2}, {-2000, -2000});
  auto routing =
      route<TypeParam>(logits, nullptr, {.scoring = Scoring::Sigmoid, .topk = 2, .normalize = true, .scale = 3});
  EXPECT_THAT(routing.weights.data, ElementsAre(0, 0));
}

/// The router by sorting whole lists, in double.
void routeBySorting(const double *logits, int64_t experts, const std::vector<double> &bias, const RouteOptions &options,
                    std::vector<int32_t> &chosen, std::vector<double> &weights) {
  std::vector<double> p(logits, logits + experts);
  double sum = 0;
  for (double &v : p)
    sum += v = options.scoring == Scoring::Softmax ? std::exp(v) : 1 / (1 + std::exp(-v));
  if (options.scoring == Scoring::Softmax)
    for (double &v : p)
      v /= sum;
  auto sorted = [](const std::vector<double> &key) {
    std::vector<int32_t> order(key.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key[a] > key[b]; });
    return order;
  };
  std::vector<double> b(experts), groupScores;
  for (int64_t e = 0; e < experts; ++e)
    b[e] = p[e] + bias[e];
  int64_t size = experts / options.groups;
  for (int64_t g = 0; g < options.groups; ++g) {
    std::vector<double> group(b.begin() + g * size, b.begin() + (g + 1) * size);
    std::sort(group.rbegin(), group.rend());
    groupScores.push_back(options.groupScore == GroupScore::Max ? group[0] : group[0] + group[1]);
  }
  std::vector<int32_t> groups = sorted(groupScores);
  groups.resize(options.topkGroups);
  chosen.clear();
  for (int32_t e : sorted(b))
    if (std::count(groups.begin(), groups.end(), e / size) && int64_t(chosen.size()) < options.topk)
      chosen.push_back(e);
  weights.clear();
  sum = 0;
  for (int32_t e : chosen)
    sum += p[e];
  for (int32_t e : chosen)
    weights.push_back(options.scale * (options.normalize ? p[e] / (sum + 1e-20) : p[e]));
}

TEST(MoeReferenceRoute, EqualsRoutingBySorting) {
  Random random(5);
  int ties = 0;
  for (int trial = 0; trial < 400; ++trial) {
    RouteOptions options;
    options.groups = std::array{1, 2, 4, 8}[random.below(4)];
    int64_t size = 2 + random.below(5), experts = options.groups * size;
    options.topkGroups = 1 + random.below(options.groups);
    options.topk = 1 + random.below(options.topkGroups * size);
    options.scoring = random.below(2) ? Scoring::Sigmoid : Scoring::Softmax;
    options.groupScore = random.below(2) ? GroupScore::Max : GroupScore::Top2Sum;
    options.normalize = random.below(2);
    options.scale = 1 + random.below(3);
    bool coarse = random.below(2); // few distinct values, so that ties occur
    Tensor<double> logits = random.tensor<double>({1, experts}), bias = random.tensor<double>({experts});
    for (int64_t e = 0; e < experts; ++e) {
      logits.data[e] = coarse ? random.below(3) : 4 * logits.data[e];
      bias.data[e] = coarse ? -2 : 2 * bias.data[e];
    }
    auto routing = route(logits, &bias, options);
    std::vector<int32_t> chosen;
    std::vector<double> weights;
    routeBySorting(logits.data.data(), experts, bias.data, options, chosen, weights);
    ASSERT_EQ(routing.experts.data, chosen) << "trial " << trial;
    ASSERT_THAT(routing.weights.data, Pointwise(testing::DoubleNear(1e-13), weights)) << "trial " << trial;
    ties += coarse;
  }
  EXPECT_GT(ties, 100);
}

//===----------------------------------------------------------------------===//
// Experts
//===----------------------------------------------------------------------===//

TYPED_TEST(MoeReference, ExpertsEqualADenseLoopOverAllExperts) {
  constexpr int64_t tokens = 4, experts = 5, topk = 3, width = 6, inner = 3;
  Random random(6);
  auto x = random.tensor<TypeParam>({tokens, width}), weights = random.tensor<TypeParam>({tokens, topk}),
       gate = random.tensor<TypeParam>({experts, inner, width}), up = random.tensor<TypeParam>({experts, inner, width}),
       down = random.tensor<TypeParam>({experts, width, inner}), residual = random.tensor<TypeParam>({tokens, width});
  IndexTensor chosen({tokens, topk}, {4, 0, 1, 2, 3, 4, 1, 2, 3, 0, 4, 2});

  // Every expert sees every token; a matrix of weights, mostly zero, mixes them.
  Tensor<double> expected({tokens, width});
  for (int64_t e = 0; e < experts; ++e) {
    auto matrix = [&](const Tensor<TypeParam> &stack) {
      return Tensor<TypeParam>({stack.dim(1), stack.dim(2)},
                               std::vector<TypeParam>(stack.row(e), stack.row(e) + stack.rowSize()));
    };
    Tensor<TypeParam> y = linear(gateUp(x, matrix(gate), matrix(up)), matrix(down));
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t k = 0; k < topk; ++k)
        if (chosen.row(t)[k] == e)
          for (int64_t d = 0; d < width; ++d)
            expected.row(t)[d] += double(weights.row(t)[k]) * y.row(t)[d];
  }
  expectNear(mlir::moe::reference::experts(x, weights, chosen, gate, up, down), expected, this->tolerance);
  for (size_t i = 0; i < expected.data.size(); ++i)
    expected.data[i] += residual.data[i];
  expectNear(mlir::moe::reference::experts(x, weights, chosen, gate, up, down, &residual), expected, this->tolerance);
}

TYPED_TEST(MoeReference, SharedExpertsAreTakenByEveryTokenWithWeightOne) {
  constexpr int64_t tokens = 4, topk = 2, width = 6, inner = 3, routed = 3, shared = 2;
  Random random(8);
  auto x = random.tensor<TypeParam>({tokens, width}), weights = random.tensor<TypeParam>({tokens, topk}),
       gate = random.tensor<TypeParam>({routed + shared, inner, width}),
       up = random.tensor<TypeParam>({routed + shared, inner, width}),
       down = random.tensor<TypeParam>({routed + shared, width, inner}),
       residual = random.tensor<TypeParam>({tokens, width});
  IndexTensor chosen({tokens, topk}, {2, 0, 1, 2, 0, 1, 2, 1});
  auto some = experts(x, weights, chosen, gate, up, down, &residual, /*activations=*/nullptr,
                      /*members=*/std::nullopt, shared);
  Tensor<TypeParam> allWeights({tokens, topk + shared});
  IndexTensor all({tokens, topk + shared});
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t k = 0; k < topk + shared; ++k) {
      all.row(t)[k] = k < topk ? chosen.row(t)[k] : static_cast<int32_t>(routed + k - topk);
      allWeights.row(t)[k] = k < topk ? weights.row(t)[k] : TypeParam(1);
    }
  EXPECT_EQ(some.data, experts(x, allWeights, all, gate, up, down, &residual).data);
}

TYPED_TEST(MoeReference, ExpertsInSetsAddWhatTheyAddTogether) {
  constexpr int64_t tokens = 5, topk = 3, width = 6, inner = 3;
  Random random(7);
  auto x = random.tensor<TypeParam>({tokens, width}), weights = random.tensor<TypeParam>({tokens, topk}),
       gate = random.tensor<TypeParam>({6, inner, width}), up = random.tensor<TypeParam>({6, inner, width}),
       down = random.tensor<TypeParam>({6, width, inner}), residual = random.tensor<TypeParam>({tokens, width});
  IndexTensor chosen({tokens, topk}, {4, 0, 1, 2, 3, 4, 1, 2, 3, 0, 4, 2, 5, 4, 0});
  auto some = [&](std::vector<int64_t> members, const Tensor<TypeParam> *added) {
    auto rows = [&](const Tensor<TypeParam> &all) {
      Tensor<TypeParam> part({int64_t(members.size()), all.dim(1), all.dim(2)});
      for (auto [place, member] : llvm::enumerate(members))
        std::copy_n(all.row(member), all.rowSize(), part.row(place));
      return part;
    };
    return experts(x, weights, chosen, rows(gate), rows(up), rows(down), added, /*activations=*/nullptr,
                   llvm::ArrayRef<int64_t>(members));
  };
  auto whole = experts(x, weights, chosen, gate, up, down, &residual);
  EXPECT_EQ(some({0, 1, 2, 3, 4, 5}, &residual).data, whole.data);
  // Expert 5 is chosen by the last token alone.
  Tensor<TypeParam> first = some({1, 3, 5}, &residual), second = some({0, 2, 4}, &first);
  expectNear(second, whole, this->tolerance);
  // Token 3 chooses 0, 4 and 2: all are of one set, and the other adds nothing.
  EXPECT_TRUE(std::equal(first.row(3), first.row(4), residual.row(3)));
  Tensor<TypeParam> alone = some({0, 2, 4}, nullptr), all = experts(x, weights, chosen, gate, up, down);
  EXPECT_TRUE(std::equal(alone.row(3), alone.row(4), all.row(3)));
}

} // namespace
