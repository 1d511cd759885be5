// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Harness.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <set>

namespace moec::cpu {
namespace {

/// Indices of the greatest `count` values, the lower index of equal ones first.
std::vector<int64_t> greatest(const std::vector<double> &values, int64_t count) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] > values[b]; });
  order.resize(count);
  return order;
}

struct Choice {
  std::vector<int64_t> experts;
  std::vector<double> weights;
};

Choice expectedChoice(const RouteSpec &spec, const float *logits, const float *bias) {
  std::vector<double> scores(logits, logits + spec.experts);
  if (spec.sigmoid) {
    for (double &score : scores)
      score = 1 / (1 + std::exp(-score));
  } else {
    double top = *std::max_element(scores.begin(), scores.end()), sum = 0;
    for (double &score : scores)
      sum += score = std::exp(score - top);
    for (double &score : scores)
      score /= sum;
  }
  std::vector<double> choice = scores;
  if (spec.bias)
    for (int64_t e = 0; e < spec.experts; ++e)
      choice[e] += bias[e];
  if (spec.groups > 1) {
    int64_t size = spec.experts / spec.groups;
    std::vector<double> groupScores;
    for (int64_t g = 0; g < spec.groups; ++g) {
      std::vector<double> group(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(group.rbegin(), group.rend());
      groupScores.push_back(group[0] + (spec.groupTop2Sum && size > 1 ? group[1] : 0));
    }
    std::vector<int64_t> kept = greatest(groupScores, spec.topkGroups);
    for (int64_t e = 0; e < spec.experts; ++e)
      if (std::find(kept.begin(), kept.end(), e / size) == kept.end())
        choice[e] = -std::numeric_limits<double>::infinity();
  }
  Choice result{greatest(choice, spec.topk), {}};
  double sum = 0;
  for (int64_t e : result.experts) {
    result.weights.push_back(scores[e]);
    sum += scores[e];
  }
  for (double &weight : result.weights)
    weight = (spec.normalize ? weight / (sum + 1e-20) : weight) * spec.scale;
  for (int64_t i = 0; i < spec.shared; ++i) {
    result.experts.push_back(spec.experts + i);
    result.weights.push_back(1);
  }
  return result;
}

std::vector<KernelSpec> routeSpecs() {
  auto make = [](int64_t experts, int64_t topk, int64_t groups, int64_t topkGroups, bool sigmoid, bool top2,
                 bool normalize, bool bias, double scale) {
    RouteSpec spec;
    spec.experts = experts;
    spec.topk = topk;
    spec.groups = groups;
    spec.topkGroups = topkGroups;
    spec.sigmoid = sigmoid;
    spec.groupTop2Sum = top2;
    spec.normalize = normalize;
    spec.bias = bias;
    spec.scale = scale;
    spec.logitsStride = experts + 3;
    spec.rows = bias ? Rows::R : Rows::T;
    spec.shared = groups > 1 ? topk % 3 : 0;
    return spec;
  };
  return {
      make(64, 6, 1, 1, false, false, false, false, 1.0), // V2-Lite
      make(160, 6, 8, 3, false, false, false, false, 16), // V2
      make(256, 8, 8, 4, true, true, true, true, 2.5),    // V3
      make(16, 4, 4, 2, true, true, true, true, 1.5),     // small, exact vectors
      make(7, 7, 1, 1, true, false, true, false, 1.0),    // all of an odd number
      make(33, 3, 11, 2, true, true, false, true, 3.0),   // groups that cross vectors
      make(12, 2, 12, 5, false, true, true, false, 1.0),  // groups of one
      make(1, 1, 1, 1, false, false, false, false, 1.0),
      make(20, 5, 4, 4, false, false, true, true, 1.0), // a bias beside softmax
  };
}

/// Runs all specs on logits from `next`.
void checkRoutes(Random &random, llvm::function_ref<float()> nextLogit, llvm::function_ref<float()> nextBias) {
  std::vector<KernelSpec> specs = routeSpecs();
  Kernels kernels(specs);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<RouteSpec>(specs[index]);
    SCOPED_TRACE("spec " + std::to_string(index));
    int64_t tokens = 37, width = spec.topk + spec.shared;
    Array<float> logits(tokens * spec.logitsStride), bias(spec.experts), weights(tokens * width, kUntouched);
    std::generate(logits.begin(), logits.end(), nextLogit);
    std::generate(bias.begin(), bias.end(), nextBias);
    Array<int32_t> chosen(tokens * width, -1);
    std::vector<Buffer *> args = {&logits};
    if (spec.bias)
      args.push_back(&bias);
    args.insert(args.end(), {&weights, &chosen});
    moe_step step = stepOf(spec.rows, tokens);
    kernels.run(index, args, step, kernels.gridOf(index, step));
    for (int64_t t = 0; t < tokens; ++t) {
      Choice expected = expectedChoice(spec, &logits[t * spec.logitsStride], bias.begin());
      for (int64_t k = 0; k < width; ++k) {
        ASSERT_EQ(chosen[t * width + k], expected.experts[k]) << "token " << t << " choice " << k;
        // Exponentials, sums in trees or over topk, two divisions, one product.
        ASSERT_TRUE(near(weights[t * width + k], expected.weights[k],
                         expected.weights[k] * std::ldexp(double(40 + spec.topk), -24)));
      }
    }
  }
}

TEST(Route, RandomLogits) {
  Random random(1);
  checkRoutes(random, [&] { return random.normal(2); }, [&] { return random.normal(0.5f); });
}

TEST(Route, TiesGoToTheLowerIndex) {
  Random random(2);
  checkRoutes(random, [&] { return float(random.integer(0, 2)); }, [] { return 0.25f; });
}

TEST(Route, NaNLogitsStillChooseDifferentExperts) {
  std::vector<KernelSpec> specs = routeSpecs();
  Kernels kernels(specs);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<RouteSpec>(specs[index]);
    Array<float> logits(spec.logitsStride, std::numeric_limits<float>::quiet_NaN()), bias(spec.experts, 1.0f),
        weights(spec.topk + spec.shared, kUntouched);
    Array<int32_t> chosen(spec.topk + spec.shared, -1);
    std::vector<Buffer *> args = {&logits};
    if (spec.bias)
      args.push_back(&bias);
    args.insert(args.end(), {&weights, &chosen});
    moe_step step{1, 0, 0};
    kernels.run(index, args, step, 1);
    std::set<int32_t> different(chosen.begin(), chosen.begin() + spec.topk);
    EXPECT_EQ(int64_t(different.size()), spec.topk);
    EXPECT_GE(*different.begin(), 0);
    EXPECT_LT(*different.rbegin(), spec.experts);
    for (float weight : std::vector<float>(weights.begin(), weights.begin() + spec.topk))
      EXPECT_TRUE(std::isnan(weight));
  }
}

TEST(Dispatch, SortsStably) {
  std::vector<KernelSpec> specs = {DispatchSpec{7, 3},
                                   DispatchSpec{64, 6},
                                   DispatchSpec{1, 1},
                                   DispatchSpec{3, 4, {0, 3, 17}},
                                   DispatchSpec{1, 2, {9}},
                                   DispatchSpec{2, 1, {40, 50}}, // chosen by none
                                   DispatchSpec{7, 3, {}, Rows::R}};
  Kernels kernels(specs);
  Random random(3);
  for (size_t index = 0; index < specs.size(); ++index)
    for (int64_t tokens : {0, 1, 2, 40}) {
      const auto &spec = std::get<DispatchSpec>(specs[index]);
      std::vector<int32_t> entries(tokens * spec.topk);
      int64_t choices = spec.members.empty() ? spec.experts : 24;
      for (int32_t &entry : entries)
        entry = random.integer(0, (choices - 1) / (tokens == 40 ? 1 : 2));
      // Others than the members are all one more expert, whose list nobody promises.
      std::vector<int32_t> places = entries;
      if (!spec.members.empty())
        for (int32_t &place : places)
          place = std::find(spec.members.begin(), spec.members.end(), place) - spec.members.begin();
      ExpertLists expected = sortByExpert(places, spec.experts + 1);
      expected.offsets.pop_back();
      expected.active[0] -= llvm::is_contained(places, spec.experts);
      expected.order.resize(expected.offsets.back());
      Array<int32_t> chosen(entries), offsets(spec.experts + 1, -1), active(spec.experts + 1, -1),
          order(entries.size(), -1);
      moe_step step = stepOf(spec.rows, tokens);
      kernels.run(index, {&chosen, &offsets, &active, &order}, step, kernels.gridOf(index, step));
      EXPECT_EQ(std::vector<int32_t>(offsets.begin(), offsets.end()), expected.offsets);
      EXPECT_EQ(std::vector<int32_t>(order.begin(), order.begin() + offsets[spec.experts]), expected.order);
      ASSERT_EQ(active[0], expected.active[0]);
      for (int32_t i = 1; i <= active[0]; ++i)
        EXPECT_EQ(active[i], expected.active[i]);
    }
}

/// Its launch against those of its parts: several blocks of rows, one that is not full, and one row.
TEST(Router, IsItsParts) {
  constexpr int64_t experts = 70, topk = 3, shared = 1, width = topk + shared, columns = 48;
  for (Rows rows : {Rows::T, Rows::R}) {
    GemmSpec scores;
    scores.weight = DType::F32;
    scores.n = experts;
    scores.k = scores.xStride = columns;
    scores.yStride = experts;
    scores.rows = rows;
    RouteSpec route;
    route.experts = route.logitsStride = experts;
    route.topk = topk;
    route.shared = shared;
    route.bias = true;
    route.rows = rows;
    const DispatchSpec all{experts + shared, width, {}, rows}, some{2, width, {3, experts}, rows};
    Kernels kernels({scores, route, all, some, GemmChainSpec{{scores, route, all, some}}});
    Random random(5);
    Array<float> w(random.normals(scores.panels() * columns * kPanelWidth)), bias(random.normals(experts));
    for (int64_t count : {1, 64, 200}) {
      moe_step step = stepOf(rows, count);
      Array<float> x(random.normals(count * columns));
      std::vector<std::string> results;
      for (bool together : {false, true}) {
        Array<float> logits(count * experts, kUntouched), weights(count * width, kUntouched);
        Array<int32_t> chosen(count * width, -1), order(count * width, -1), orderOfSome(count * width, -1);
        Array<int32_t> offsets(experts + shared + 1, -1), active(experts + shared + 1, -1), offsetsOfSome(3, -1),
            activeOfSome(3, -1), arrivals(1 + 4, 0);
        auto run = [&](size_t index, const std::vector<Buffer *> &args) {
          kernels.run(index, args, step, kernels.gridOf(index, step));
        };
        if (together) {
          run(4, {&x, &w, &logits, &logits, &bias, &weights, &chosen, &chosen, &offsets, &active, &order, &chosen,
                  &offsetsOfSome, &activeOfSome, &orderOfSome, &arrivals});
          for (int32_t arrived : arrivals)
            EXPECT_EQ(arrived, 0);
        } else {
          run(0, {&x, &w, &logits});
          run(1, {&logits, &bias, &weights, &chosen});
          run(2, {&chosen, &offsets, &active, &order});
          run(3, {&chosen, &offsetsOfSome, &activeOfSome, &orderOfSome});
        }
        EXPECT_EQ(offsets[experts + shared], count * width);
        results.push_back(logits.contents() + weights.contents() + chosen.contents() + offsets.contents() +
                          active.contents() + order.contents() + offsetsOfSome.contents() + activeOfSome.contents());
      }
      EXPECT_TRUE(results[0] == results[1]) << count << " rows";
    }
  }
}

/// A head against its gemm, with and without the logits: rows without a number, with ties, and of several blocks.
TEST(Argmax, IsThatOfTheLogits) {
  constexpr int64_t columns = 48;
  for (int64_t n : {1, 64, 70, 1100}) {
    GemmSpec plain;
    plain.weight = DType::F32;
    plain.n = n;
    plain.k = plain.xStride = columns;
    plain.yStride = n + 1;
    plain.rows = Rows::R;
    GemmSpec head = plain;
    head.epilogue = Epilogue::Argmax;
    const ArgmaxSpec argmax{head.panels()};
    Kernels kernels({plain, head, argmax, GemmChainSpec{{head, argmax}}});
    Random random(6);
    Array<float> w(random.normals(plain.panels() * columns * kPanelWidth));
    // Every row of weights is there twice, if there are that many: the greatest logit is too.
    auto weight = [&](int64_t row, int64_t k) -> float & {
      return w[(row / kPanelWidth * columns + k) * kPanelWidth + row % kPanelWidth];
    };
    for (int64_t row = 0; row < n / 2; ++row)
      for (int64_t k = 0; k < columns; ++k)
        weight(row + n / 2, k) = weight(row, k);
    for (int64_t count : {1, 5, 130}) {
      const moe_step step = stepOf(Rows::R, count);
      Array<float> x(random.normals(count * columns));
      std::fill_n(x.begin() + count / 2 * columns, columns, std::numeric_limits<float>::quiet_NaN());
      if (count > 1)
        std::fill_n(x.begin(), columns, 0.0F);
      Array<float> logits(count * plain.yStride, kUntouched);
      kernels.run(0, {&x, &w, &logits}, step, kernels.gridOf(0, step));
      std::vector<int32_t> expected;
      for (int64_t r = 0; r < count; ++r) {
        const float *row = &logits[r * plain.yStride];
        auto less = [](float a, float b) { return !std::isnan(b) && (std::isnan(a) || a < b); };
        const float *best = std::max_element(row, row + n, less);
        expected.push_back(std::isnan(*best) ? -1 : int32_t(best - row));
      }
      EXPECT_EQ(expected[count / 2], -1);
      for (bool together : {false, true})
        for (bool stored : {false, true}) {
          Array<float> y(count * plain.yStride, kUntouched), candidates(count * 2 * argmax.count, kUntouched);
          Array<int32_t> best(count, -7), arrivals(1 + 3, 0);
          Buffer *wanted = stored ? &y : nullptr;
          if (together) {
            kernels.run(3, {&x, &w, wanted, &candidates, &candidates, &best, &arrivals}, step, kernels.gridOf(3, step));
          } else {
            kernels.run(1, {&x, &w, wanted, &candidates}, step, kernels.gridOf(1, step));
            kernels.run(2, {&candidates, &best}, step, kernels.gridOf(2, step));
          }
          EXPECT_EQ(std::vector<int32_t>(best.begin(), best.end()), expected) << n << " columns, " << count << " rows";
          EXPECT_TRUE(!stored || y.contents() == logits.contents());
        }
    }
  }
}

TEST(Combine, WeighsAndAdds) {
  std::vector<KernelSpec> specs;
  using Members = std::vector<int64_t>;
  for (auto [topk, width, residual, members] : {std::tuple{1, 1, false, Members{}},
                                                {6, 16, true, {}},
                                                {3, 37, true, {}},
                                                {8, 50, false, {}},
                                                {6, 37, true, {0, 2, 7}},
                                                {4, 16, false, {1, 3, 5, 6}},
                                                {1, 3, false, {30}}}) {
    CombineSpec spec;
    spec.members = members;
    spec.topk = topk;
    spec.width = width;
    spec.residual = residual;
    spec.yStride = width + 1;
    spec.residualStride = width + 2;
    spec.outStride = width + 3;
    spec.rows = residual ? Rows::R : Rows::T;
    specs.push_back(spec);
  }
  Kernels kernels(specs);
  Random random(4);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<CombineSpec>(specs[index]);
    int64_t tokens = 5;
    Array<float> y(random.normals(tokens * spec.topk * spec.yStride)), weights(random.normals(tokens * spec.topk)),
        residual(random.normals(tokens * spec.residualStride)), out(tokens * spec.outStride, kUntouched);
    std::vector<Buffer *> args = {&y, &weights};
    Array<int32_t> chosen(tokens * spec.topk, 0);
    auto counts = [&](int64_t entry) {
      return spec.members.empty() || llvm::is_contained(spec.members, chosen[entry]);
    };
    if (!spec.members.empty()) {
      // The first token chooses no member. Rows of others hold what memory had.
      for (int64_t i = 0; i < tokens * spec.topk; ++i) {
        chosen[i] = i < spec.topk ? 20 + i : random.integer(0, 8);
        if (!counts(i))
          std::fill_n(&y[i * spec.yStride], spec.yStride, std::numeric_limits<float>::quiet_NaN());
      }
      args.push_back(&chosen);
    }
    if (spec.residual)
      args.push_back(&residual);
    args.push_back(&out);
    moe_step step = stepOf(spec.rows, tokens);
    kernels.run(index, args, step, kernels.gridOf(index, step));
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t i = 0; i < spec.outStride; ++i) {
        double expected = kUntouched, magnitude = 0;
        if (i < spec.width) {
          expected = spec.residual ? residual[t * spec.residualStride + i] : 0;
          magnitude = std::fabs(expected);
          for (int64_t k = 0; k < spec.topk; ++k) {
            if (!counts(t * spec.topk + k))
              continue;
            double term = double(weights[t * spec.topk + k]) * y[(t * spec.topk + k) * spec.yStride + i];
            expected += term;
            magnitude += std::fabs(term);
          }
        }
        ASSERT_TRUE(near(out[t * spec.outStride + i], expected, magnitude * std::ldexp(spec.topk + 1.0, -24)));
      }
  }
}

} // namespace
} // namespace moec::cpu
