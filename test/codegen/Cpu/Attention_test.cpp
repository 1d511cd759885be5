// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Harness.h"

#include <cmath>
#include <limits>

namespace moec::cpu {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// A cache of sequences with the given lengths on shuffled pages. Whatever no sequence owns is NaN.
struct Cache {
  Array<float> entries;
  Array<int32_t> table;
  int64_t pagesPerSlot;

  Cache(const std::vector<int64_t> &lengths, int64_t used, int64_t width, Random &random)
      : entries(0), table(0), pagesPerSlot(1) {
    for (int64_t length : lengths)
      pagesPerSlot = std::max(pagesPerSlot, (length + 63) / 64 + 1);
    int64_t pages = lengths.size() * pagesPerSlot;
    table = Array<int32_t>(random.permutation(pages));
    entries = Array<float>(pages * 64 * width, kNaN);
    for (size_t slot = 0; slot < lengths.size(); ++slot)
      for (int64_t j = 0; j < lengths[slot]; ++j) {
        float *at = entry(slot, j, width);
        for (int64_t i = 0; i < width; ++i)
          at[i] = i < used ? random.normal() : 0.0f;
      }
  }
  float *entry(int64_t slot, int64_t j, int64_t width) const {
    return &entries[(table[slot * pagesPerSlot + j / 64] * 64 + j % 64) * width];
  }
};

MlaAttentionSpec attention(int64_t heads, int64_t latent, int64_t rope) {
  MlaAttentionSpec spec;
  spec.heads = heads;
  spec.latent = latent;
  spec.rope = rope;
  spec.width = (latent + rope + 15) / 16 * 16;
  spec.qHead = latent + rope + 1;
  spec.qStride = heads * spec.qHead + 2;
  spec.outHead = latent + 3;
  spec.outStride = heads * spec.outHead + 1;
  spec.scale = 1.0 / std::sqrt(double(latent + rope));
  return spec;
}

TEST(MlaAttention, AgreesWithTheDefinition) {
  std::vector<KernelSpec> specs;
  for (auto [heads, latent, rope] :
       {std::tuple{1, 16, 16}, {3, 20, 6}, {4, 64, 16}, {6, 72, 8}, {9, 100, 10}, {2, 5, 2}})
    specs.push_back(attention(heads, latent, rope));
  MlaAttentionSpec wide = attention(4, 24, 8);
  wide.width = 64;
  specs.push_back(wide);
  Kernels kernels(specs);
  Random random(1);
  const std::vector<int64_t> lengths = {1, 63, 64, 65, 200, 7};
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<MlaAttentionSpec>(specs[index]);
    SCOPED_TRACE("spec " + std::to_string(index));
    Cache cache(lengths, spec.latent + spec.rope, spec.width, random);
    // Newest entries, older ones, and several tokens of one sequence.
    std::vector<int32_t> slots = {0, 1, 2, 3, 4, 4, 4, 5, 4, 1}, positions = {0, 62, 63, 64, 199, 198, 128, 6, 0, 31};
    int64_t tokens = slots.size();
    Array<float> q(random.normals(tokens * spec.qStride)), out(tokens * spec.outStride, kUntouched);
    Array<int32_t> slotArray(slots), positionArray(positions);
    moe_step step{tokens, 0, cache.pagesPerSlot};
    kernels.run(index, {&q, &positionArray, &slotArray, &cache.table, &cache.entries, &out}, step,
                kernels.gridOf(index, step));

    std::vector<bool> owned(out.count());
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t h = 0; h < spec.heads; ++h) {
        const float *query = &q[t * spec.qStride + h * spec.qHead];
        int64_t seen = positions[t] + 1;
        std::vector<double> p(seen);
        double top = -std::numeric_limits<double>::infinity(), total = 0, scoreError = 0;
        for (int64_t j = 0; j < seen; ++j) {
          const float *entry = cache.entry(slots[t], j, spec.width);
          double magnitude = 0;
          for (int64_t i = 0; i < spec.latent + spec.rope; ++i) {
            p[j] += double(query[i]) * entry[i];
            magnitude += std::fabs(double(query[i]) * entry[i]);
          }
          p[j] *= spec.scale;
          scoreError = std::max(scoreError, magnitude * spec.scale * std::ldexp(double(spec.width), -24));
          top = std::max(top, p[j]);
        }
        for (double &value : p)
          total += value = std::exp(value - top);
        for (int64_t i = 0; i < spec.latent; ++i) {
          double expected = 0, magnitude = 0;
          for (int64_t j = 0; j < seen; ++j) {
            double term = p[j] / total * cache.entry(slots[t], j, spec.width)[i];
            expected += term;
            magnitude += std::fabs(term);
          }
          // An error d of the scores changes p by about 2 d; sums of `seen` terms and a few roundings come on top.
          double tolerance = magnitude * (2 * scoreError + std::ldexp(double(seen + 30), -24));
          size_t at = t * spec.outStride + h * spec.outHead + i;
          owned[at] = true;
          ASSERT_TRUE(near(out[at], expected, tolerance)) << "token " << t << " head " << h << " element " << i;
        }
      }
    for (size_t i = 0; i < out.count(); ++i)
      ASSERT_TRUE(owned[i] || out[i] == kUntouched) << "element " << i << " is nobody's";

    std::vector<float> together(out.begin(), out.end());
    std::fill(out.begin(), out.end(), kUntouched);
    step.tokens = 1;
    for (int64_t t = 0; t < tokens; ++t)
      kernels.runOnce(index,
                      {q.begin() + t * spec.qStride, positionArray.begin() + t, slotArray.begin() + t,
                       cache.table.data(), cache.entries.data(), out.begin() + t * spec.outStride},
                      step, kernels.gridOf(index, step));
    EXPECT_EQ(std::memcmp(together.data(), out.data(), out.size()), 0) << "a token alone has other bits";
  }
}

/// Scores far apart: the running maximum must not overflow, and earlier pages must fade to nothing.
TEST(MlaAttention, LargeScores) {
  MlaAttentionSpec spec = attention(1, 16, 0);
  spec.scale = 1000;
  Kernels kernels({spec});
  Random random(2);
  Cache cache({130}, 16, spec.width, random);
  Array<float> q(spec.qStride, 0.0f), out(spec.outStride, kUntouched);
  q[0] = 1;
  for (int64_t j = 0; j < 130; ++j)
    cache.entry(0, j, spec.width)[0] = j;
  Array<int32_t> slots(1, 0), positions(1, 129);
  moe_step step{1, 0, cache.pagesPerSlot};
  kernels.run(0, {&q, &positions, &slots, &cache.table, &cache.entries, &out}, step, 1);
  for (int64_t i = 0; i < spec.latent; ++i)
    EXPECT_EQ(out[i], cache.entry(0, 129, spec.width)[i]);
}

TEST(MlaAttention, NaNOfAQueryStaysInItsHead) {
  MlaAttentionSpec spec = attention(4, 16, 4);
  Kernels kernels({spec});
  Random random(3);
  Cache cache({70}, 20, spec.width, random);
  Array<float> q(random.normals(spec.qStride)), out(spec.outStride, kUntouched);
  q[2 * spec.qHead + 19] = kNaN;
  Array<int32_t> slots(1, 0), positions(1, 69);
  moe_step step{1, 0, cache.pagesPerSlot};
  kernels.run(0, {&q, &positions, &slots, &cache.table, &cache.entries, &out}, step, 1);
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < spec.latent; ++i)
      EXPECT_EQ(std::isnan(out[h * spec.outHead + i]), h == 2);
}

TEST(CacheAppend, WritesOneEntryAndItsPadding) {
  std::vector<KernelSpec> specs;
  for (auto [latent, rope, width] : {std::tuple{16, 16, 32}, {20, 6, 32}, {64, 16, 96}, {33, 1, 48}}) {
    CacheAppendSpec spec;
    spec.latent = latent;
    spec.rope = rope;
    spec.width = width;
    spec.latentStride = latent + 2;
    spec.ropeStride = rope + 5;
    specs.push_back(spec);
  }
  Kernels kernels(specs);
  Random random(4);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<CacheAppendSpec>(specs[index]);
    Cache cache({70, 64, 1}, spec.width, spec.width, random);
    std::vector<int32_t> slots = {0, 0, 1, 2, 0}, positions = {69, 70, 64, 0, 3};
    Array<float> latent(random.normals(5 * spec.latentStride)), rope(random.normals(5 * spec.ropeStride));
    Array<int32_t> slotArray(slots), positionArray(positions);
    Array<float> expected(std::vector<float>(cache.entries.begin(), cache.entries.end()));
    for (int64_t t = 0; t < 5; ++t) {
      float *entry = expected.begin() + (cache.entry(slots[t], positions[t], spec.width) - cache.entries.begin());
      for (int64_t i = 0; i < spec.width; ++i)
        entry[i] = i < spec.latent               ? latent[t * spec.latentStride + i]
                   : i < spec.latent + spec.rope ? rope[t * spec.ropeStride + i - spec.latent]
                                                 : 0.0f;
    }
    moe_step step{5, 0, cache.pagesPerSlot};
    kernels.run(index, {&latent, &rope, &positionArray, &slotArray, &cache.table, &cache.entries}, step,
                kernels.gridOf(index, step));
    EXPECT_EQ(std::memcmp(expected.data(), cache.entries.data(), expected.size()), 0) << "spec " << index;
  }
}

} // namespace
} // namespace moec::cpu
