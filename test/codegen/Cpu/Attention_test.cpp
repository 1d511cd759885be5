// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Harness.h"
#include "dialects/Moe/Reference/Quantize.h"

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace moec::cpu {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// The nearest that a cache can hold.
float stored(DType type, float value) { return type == DType::BF16 ? bf16ToFloat(floatToBf16(value)) : value; }

/// A latent and a rope part as an entry in codes, by the definition; bytes between them are left alone.
void encode(CodedEntry layout, CacheCodes codes, const float *latent, const float *rope, uint8_t *to) {
  auto format = codes == CacheCodes::Int8 ? mlir::moe::CodeFormat::Int8 : mlir::moe::CodeFormat::F8E4M3;
  for (int64_t g = 0; g < layout.groups(); ++g) {
    int64_t begin = g * CodedEntry::group, count = std::min(CodedEntry::group, layout.latent - begin);
    auto group = mlir::moe::reference::cachedGroup(format, llvm::ArrayRef(latent + begin, count));
    for (int64_t i = 0; i < count; ++i)
      to[begin + i] = mlir::moe::reference::byteOf(format, group.codes[i]);
    std::memcpy(to + layout.scalesAt() + 4 * g, &group.scale, 4);
  }
  for (int64_t i = 0; i < layout.rope; ++i) {
    uint16_t half = floatToBf16(rope[i]);
    std::memcpy(to + layout.ropeAt() + 2 * i, &half, 2);
  }
}

/// What is read of it.
void decode(CodedEntry layout, CacheCodes codes, const uint8_t *from, float *latent, float *rope) {
  for (int64_t i = 0; i < layout.latent; ++i) {
    float scale;
    std::memcpy(&scale, from + layout.scalesAt() + i / CodedEntry::group * 4, 4);
    float code = codes == CacheCodes::Int8 ? static_cast<int8_t>(from[i]) : f8e4m3ToFloat(from[i]);
    latent[i] = bf16ToFloat(floatToBf16(code * scale));
  }
  for (int64_t i = 0; i < layout.rope; ++i) {
    uint16_t half;
    std::memcpy(&half, from + layout.ropeAt() + 2 * i, 2);
    rope[i] = bf16ToFloat(half);
  }
}

/// A cache of sequences with the given lengths on shuffled pages. Whatever no sequence owns is NaN.
struct Cache {
  Array<float> entries; ///< what the cache holds, as floats
  Array<uint16_t> halves{0};
  Array<uint8_t> bytes{0}; ///< entries in codes
  Array<int32_t> table;
  int64_t pagesPerSlot;
  DType type;

  /// The cache of an attention kernel.
  template <class Spec>
  Cache(const std::vector<int64_t> &lengths, const Spec &spec, Random &random)
      : Cache(lengths, spec.latent + spec.rope, spec.width, random, spec.cache) {
    if (spec.codes == CacheCodes::None)
      return;
    const CodedEntry layout{spec.latent, spec.rope};
    bytes = Array<uint8_t>(entries.count() / spec.width * layout.stride(), 0xFF);
    for (size_t slot = 0; slot < lengths.size(); ++slot)
      for (int64_t j = 0; j < lengths[slot]; ++j) {
        float *at = entry(slot, j, spec.width);
        // Groups that differ in size, and that are nothing but zeros.
        for (int64_t i = 0; i < spec.latent; ++i)
          at[i] *= j % 7 == 3 ? 0 : std::ldexp(1.0F, (j + i / CodedEntry::group) % 5 - 3);
        uint8_t *to = &bytes[(at - entries.begin()) / spec.width * layout.stride()];
        encode(layout, spec.codes, at, at + spec.latent, to);
        decode(layout, spec.codes, to, at, at + spec.latent);
      }
  }
  Cache(const std::vector<int64_t> &lengths, int64_t used, int64_t width, Random &random, DType type = DType::F32)
      : entries(0), table(0), pagesPerSlot(1), type(type) {
    for (int64_t length : lengths)
      pagesPerSlot = std::max(pagesPerSlot, (length + 63) / 64 + 1);
    int64_t pages = lengths.size() * pagesPerSlot;
    table = Array<int32_t>(random.permutation(pages));
    entries = Array<float>(pages * 64 * width, kNaN);
    for (size_t slot = 0; slot < lengths.size(); ++slot)
      for (int64_t j = 0; j < lengths[slot]; ++j) {
        float *at = entry(slot, j, width);
        for (int64_t i = 0; i < width; ++i)
          at[i] = i < used ? stored(type, random.normal()) : 0.0f;
      }
  }
  /// The cache as kernels take it; call it once the entries are as they should be. Those in codes stay as they are.
  Buffer *pages() {
    if (bytes.count())
      return &bytes;
    if (type == DType::F32)
      return &entries;
    halves = Array<uint16_t>(entries.count());
    std::ranges::transform(entries, halves.begin(), floatToBf16);
    return &halves;
  }
  float *entry(int64_t slot, int64_t j, int64_t width) const {
    return &entries[(table[slot * pagesPerSlot + j / 64] * 64 + j % 64) * width];
  }
};

/// `specs` for caches of f32, then the same for all others.
template <typename Spec> std::vector<Spec> overCaches(const std::vector<Spec> &specs) {
  std::vector<Spec> all = specs;
  for (CacheCodes codes : {CacheCodes::None, CacheCodes::Int8, CacheCodes::F8E4M3})
    for (Spec spec : specs) {
      spec.cache = DType::BF16;
      spec.codes = codes;
      all.push_back(spec);
    }
  return all;
}

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

/// Absorbed attention as a program launches it: what it leaves to do is done by a second kernel.
class Attention {
public:
  explicit Attention(const std::vector<MlaAttentionSpec> &specs) : specs(specs), kernels(both(specs)) {}

  /// At all levels, in pieces and at once.
  void run(size_t index, Array<float> &q, Array<int32_t> &positions, Array<int32_t> &slots, Cache &cache,
           Array<float> &out) {
    moe_step step{static_cast<int64_t>(positions.count()), 0, cache.pagesPerSlot};
    Array<float> parts = partsOf(index);
    kernels.run(2 * index, {&q, &positions, &slots, &cache.table, cache.pages(), &parts, &out}, step,
                kernels.gridOf(2 * index, step));
    kernels.run(2 * index + 1, {&parts, &positions, &slots, &out}, step, kernels.gridOf(2 * index + 1, step));
  }
  /// Each token in a step of its own, at the best level.
  void runAlone(size_t index, Array<float> &q, Array<int32_t> &positions, Array<int32_t> &slots, Cache &cache,
                Array<float> &out) {
    moe_step step{1, 0, cache.pagesPerSlot};
    const MlaAttentionSpec &spec = specs[index];
    Array<float> parts = partsOf(index);
    Buffer *pages = cache.pages();
    for (size_t t = 0; t < positions.count(); ++t) {
      float *row = out.begin() + t * spec.outStride;
      kernels.runOnce(2 * index,
                      {q.begin() + t * spec.qStride, positions.begin() + t, slots.begin() + t, cache.table.data(),
                       pages->data(), parts.data(), row},
                      step, kernels.gridOf(2 * index, step));
      kernels.runOnce(2 * index + 1, {parts.data(), positions.begin() + t, slots.begin() + t, row}, step,
                      kernels.gridOf(2 * index + 1, step));
    }
  }

private:
  static std::vector<KernelSpec> both(const std::vector<MlaAttentionSpec> &specs) {
    std::vector<KernelSpec> result;
    for (const MlaAttentionSpec &spec : specs) {
      result.push_back(spec);
      result.push_back(MlaCombineSpec{spec.heads, spec.latent, spec.outStride, spec.outHead, spec.runBelow});
    }
    return result;
  }
  /// Whatever an earlier step left there.
  Array<float> partsOf(size_t index) const {
    return Array<float>(MlaAttentionSpec::splitRows * MlaAttentionSpec::maxSpans * specs[index].partSize(), kNaN);
  }

  std::vector<MlaAttentionSpec> specs;
  Kernels kernels;
};

/// Its launch against those of its parts, where attention was cut and where it was not.
TEST(MlaValues, IsItsParts) {
  std::vector<MlaAttentionSpec> specs = {attention(3, 20, 6), attention(16, 72, 8), attention(21, 100, 11)};
  specs.back().runBelow = 3;
  for (const MlaAttentionSpec &spec : specs) {
    const MlaCombineSpec combine{spec.heads, spec.latent, spec.outStride, spec.outHead, spec.runBelow};
    GemmSpec gemm;
    gemm.weight = DType::BF16;
    gemm.n = 40;
    gemm.k = spec.latent;
    gemm.batch = spec.heads;
    gemm.xStride = spec.outStride;
    gemm.xBatch = spec.outHead;
    gemm.yBatch = gemm.n + 1;
    gemm.yStride = gemm.batch * gemm.yBatch;
    Kernels kernels({spec, combine, gemm, MlaValuesSpec{{combine, gemm}}});
    Random random(7);
    Array<uint16_t> w(spec.heads * gemm.panels() * gemm.k * kPanelWidth);
    std::generate(w.begin(), w.end(), [&] { return floatToBf16(random.normal()); });
    for (int64_t tokens : {1, 4, 70}) {
      Cache cache({900, 500}, spec, random);
      Array<int32_t> slots(tokens, 0), positions(tokens, 0);
      for (int64_t t = 0; t < tokens; ++t) {
        slots[t] = t % 5 == 4; // runs of four and of one
        positions[t] = slots[t] ? 499 - t : 899 - 3 * t;
      }
      moe_step step{tokens, 0, cache.pagesPerSlot};
      Array<float> q(random.normals(tokens * spec.qStride));
      std::vector<std::string> results;
      for (bool together : {false, true}) {
        Array<float> parts(MlaAttentionSpec::splitRows * MlaAttentionSpec::maxSpans * spec.partSize(), kNaN);
        Array<float> latents(tokens * spec.outStride, 0.5F), y(tokens * gemm.yStride, kUntouched);
        auto run = [&](size_t index, const std::vector<Buffer *> &args) {
          kernels.run(index, args, step, kernels.gridOf(index, step));
        };
        run(0, {&q, &positions, &slots, &cache.table, cache.pages(), &parts, &latents});
        if (together) {
          run(3, {&parts, &positions, &slots, &latents, &latents, &w, &y});
        } else {
          run(1, {&parts, &positions, &slots, &latents});
          run(2, {&latents, &w, &y});
        }
        results.push_back(latents.contents() + y.contents());
        EXPECT_NE(y[0], kUntouched);
      }
      EXPECT_TRUE(results[0] == results[1]) << spec.heads << " heads, " << tokens << " tokens";
    }
  }
}

TEST(MlaAttention, AgreesWithTheDefinition) {
  std::vector<MlaAttentionSpec> specs;
  for (auto [heads, latent, rope] :
       {std::tuple{1, 16, 16}, {3, 20, 6}, {4, 64, 16}, {16, 72, 8}, {21, 100, 11}, {2, 5, 2}, {2, 259, 21}})
    specs.push_back(attention(heads, latent, rope));
  MlaAttentionSpec wide = attention(4, 24, 8);
  wide.width = 64;
  specs.push_back(wide);
  specs = overCaches(specs);
  Attention kernels(specs);
  Random random(1);
  const std::vector<int64_t> lengths = {1, 63, 64, 65, 500, 7};
  for (size_t index = 0; index < specs.size(); ++index) {
    const MlaAttentionSpec &spec = specs[index];
    SCOPED_TRACE("spec " + std::to_string(index));
    bool halves = spec.cache == DType::BF16;
    Cache cache(lengths, spec, random);
    // Newest entries, older ones, and several tokens of one sequence.
    std::vector<int32_t> slots = {0, 1, 2, 3, 4, 4, 4, 5, 4, 1}, positions = {0, 62, 63, 64, 499, 198, 128, 6, 0, 31};
    int64_t tokens = slots.size();
    Array<float> q(random.normals(tokens * spec.qStride)), out(tokens * spec.outStride, kUntouched);
    Array<int32_t> slotArray(slots), positionArray(positions);
    kernels.run(index, q, positionArray, slotArray, cache, out);

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
            double product = double(stored(spec.cache, query[i])) * entry[i];
            p[j] += product;
            magnitude += std::fabs(product);
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
          // An error d of the scores changes p by about 2 d; sums of `seen` terms and a few roundings come on top, and
          // what rounding p to bf16 does to it and to the sum.
          double tolerance =
              magnitude * (2 * scoreError + std::ldexp(double(seen + 30), -24) + (halves ? std::ldexp(1.0, -8) : 0));
          size_t at = t * spec.outStride + h * spec.outHead + i;
          owned[at] = true;
          ASSERT_TRUE(near(out[at], expected, tolerance)) << "token " << t << " head " << h << " element " << i;
        }
      }
    for (size_t i = 0; i < out.count(); ++i)
      ASSERT_TRUE(owned[i] || out[i] == kUntouched) << "element " << i << " is nobody's";

    std::vector<float> together(out.begin(), out.end());
    std::fill(out.begin(), out.end(), kUntouched);
    kernels.runAlone(index, q, positionArray, slotArray, cache, out);
    EXPECT_EQ(std::memcmp(together.data(), out.data(), out.size()), 0) << "a token alone has other bits";
  }
}

/// More pages than spans: a token has the same bits alone, where spans are tasks, and in a step of many.
TEST(MlaAttention, LongContextsAreCutTheSameWay) {
  std::vector<MlaAttentionSpec> specs = overCaches<MlaAttentionSpec>({attention(3, 20, 4)});
  Attention kernels(specs);
  Random random(11);
  for (size_t index = 0; index < specs.size(); ++index) {
    const MlaAttentionSpec &spec = specs[index];
    Cache cache({4500, 2050}, spec, random);
    std::vector<int32_t> slots, positions;
    for (auto [slot, position] :
         {std::pair{0, 4499}, {0, 4223}, {0, 4096}, {0, 4095}, {1, 2049}, {0, 2047}, {1, 128}, {0, 127}, {1, 0}}) {
      slots.push_back(slot);
      positions.push_back(position);
    }
    int64_t tokens = slots.size();
    ASSERT_GT(tokens, MlaAttentionSpec::splitRows);
    Array<float> q(random.normals(tokens * spec.qStride));
    Array<float> together(tokens * spec.outStride, kUntouched), alone(tokens * spec.outStride, kUntouched);
    Array<int32_t> slotArray(slots), positionArray(positions);
    kernels.run(index, q, positionArray, slotArray, cache, together);
    kernels.runAlone(index, q, positionArray, slotArray, cache, alone);
    EXPECT_EQ(std::memcmp(together.data(), alone.data(), alone.size()), 0);
    for (int64_t t : {0, 4}) { // and split at all levels
      Array<float> query(std::vector<float>(q.begin() + t * spec.qStride, q.begin() + (t + 1) * spec.qStride));
      Array<float> out(spec.outStride, kUntouched);
      Array<int32_t> slot(1, slots[t]), position(1, positions[t]);
      kernels.run(index, query, position, slot, cache, out);
      EXPECT_EQ(std::memcmp(together.begin() + t * spec.outStride, out.data(), out.size()), 0);
    }
  }
}

/// Scores far apart: the running maximum must not overflow, and earlier pages must fade to nothing.
TEST(MlaAttention, LargeScores) {
  MlaAttentionSpec spec = attention(1, 16, 0);
  spec.scale = 1000;
  Attention kernels({spec});
  Random random(2);
  Cache cache({130}, 16, spec.width, random);
  Array<float> q(spec.qStride, 0.0f), out(spec.outStride, kUntouched);
  q[0] = 1;
  for (int64_t j = 0; j < 130; ++j)
    cache.entry(0, j, spec.width)[0] = j;
  Array<int32_t> slots(1, 0), positions(1, 129);
  kernels.run(0, q, positions, slots, cache, out);
  for (int64_t i = 0; i < spec.latent; ++i)
    EXPECT_EQ(out[i], cache.entry(0, 129, spec.width)[i]);
}

TEST(MlaAttention, NaNOfAQueryStaysInItsHead) {
  MlaAttentionSpec spec = attention(4, 16, 4);
  Attention kernels({spec});
  Random random(3);
  Cache cache({70}, 20, spec.width, random);
  Array<float> q(random.normals(spec.qStride)), out(spec.outStride, kUntouched);
  q[2 * spec.qHead + 19] = kNaN;
  Array<int32_t> slots(1, 0), positions(1, 69);
  kernels.run(0, q, positions, slots, cache, out);
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < spec.latent; ++i)
      EXPECT_EQ(std::isnan(out[h * spec.outHead + i]), h == 2);
}

/// Tokens in runs of neighbours below or from a bound on are left as they are; others have the bits they have alone.
template <typename Spec, typename Args> void expectRowsOfRuns(Spec spec, int64_t Spec::*bound, bool from, Args args) {
  Spec all = spec;
  all.*bound = from ? 1 : 0;
  spec.*bound = 3;
  Kernels kernels({spec, all});
  Random random(7);
  Cache cache({90, 90, 90}, spec.latent + spec.rope, spec.width, random);
  // Runs of 2, 3, 1, 5 and 2 tokens.
  std::vector<int32_t> slots = {0, 0, 1, 1, 1, 0, 2, 2, 2, 2, 2, 1, 1}, positions;
  for (size_t t = 0; t < slots.size(); ++t)
    positions.push_back(t * 7);
  const std::vector<bool> isLong = {0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0};
  int64_t tokens = slots.size();
  Array<int32_t> slotArray(slots), positionArray(positions);
  Array<float> out(tokens * spec.outStride, kUntouched), expected(tokens * spec.outStride, kUntouched);
  moe_step step{tokens, 0, cache.pagesPerSlot};
  auto run = [&](size_t index, Array<float> &result) {
    kernels.run(index, args(random, tokens, positionArray, slotArray, cache, result), step,
                kernels.gridOf(index, step));
  };
  run(0, out);
  run(1, expected);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = t * spec.outStride; i < (t + 1) * spec.outStride; ++i)
      ASSERT_EQ(out[i], isLong[t] == from ? expected[i] : kUntouched) << "token " << t;
}

TEST(MlaAttention, LeavesTokensOfLongRunsAlone) {
  MlaAttentionSpec spec = attention(5, 24, 8);
  // 13 tokens: more than are split.
  Array<float> q(0), parts(MlaAttentionSpec::splitRows * MlaAttentionSpec::maxSpans * spec.partSize());
  expectRowsOfRuns(spec, &MlaAttentionSpec::runBelow, /*from=*/false,
                   [&](Random &random, int64_t tokens, auto &positions, auto &slots, Cache &cache, auto &out) {
                     if (q.count() == 0)
                       q = Array<float>(random.normals(tokens * spec.qStride));
                     return std::vector<Buffer *>{&q, &positions, &slots, &cache.table, cache.pages(), &parts, &out};
                   });
}

/// The same for a step whose tokens are split.
TEST(MlaAttention, LeavesTokensOfLongRunsAloneWhereTheyAreFew) {
  MlaAttentionSpec spec = attention(5, 24, 8), all = spec;
  spec.runBelow = 3;
  Attention kernels({spec, all});
  Random random(12);
  Cache cache({90, 90}, spec.latent + spec.rope, spec.width, random);
  Array<int32_t> slots(std::vector<int32_t>{0, 1, 1, 1, 0, 0}), positions(std::vector<int32_t>{0, 7, 8, 80, 20, 89});
  Array<float> q(random.normals(6 * spec.qStride));
  Array<float> out(6 * spec.outStride, kUntouched), expected(6 * spec.outStride, kUntouched);
  kernels.run(0, q, positions, slots, cache, out);
  kernels.run(1, q, positions, slots, cache, expected);
  for (int64_t t = 0; t < 6; ++t)
    for (int64_t i = t * spec.outStride; i < (t + 1) * spec.outStride; ++i)
      ASSERT_EQ(out[i], t >= 1 && t <= 3 ? kUntouched : expected[i]) << "token " << t;
}

/// The up-projection of each head, [heads, n, k], and the same in panels of the stored type.
struct HeadWeights {
  std::vector<float> values;
  Array<char> panels{0};
  int64_t n, k;

  HeadWeights(DType type, int64_t heads, int64_t n, int64_t k, Random &random)
      : values(random.normals(heads * n * k)), n(n), k(k) {
    int64_t count = (n + kPanelWidth - 1) / kPanelWidth;
    std::vector<char> bytes(heads * count * k * kPanelWidth * byteSize(type), 0);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < k; ++c) {
          float &value = values[(h * n + i) * k + c];
          int64_t panel = (h * count + i / kPanelWidth) * k * kPanelWidth;
          char *at = &bytes[(panel + inPanel(type, k, c, i % kPanelWidth)) * byteSize(type)];
          if (type == DType::BF16) {
            uint32_t bits = std::bit_cast<uint32_t>(value) & 0xFFFF0000u;
            value = std::bit_cast<float>(bits);
            std::memcpy(at, reinterpret_cast<const char *>(&bits) + 2, 2);
          } else if (type == DType::F16) {
            auto half = static_cast<_Float16>(value);
            value = half;
            std::memcpy(at, &half, 2);
          } else {
            std::memcpy(at, &value, 4);
          }
        }
    panels = Array<char>(bytes);
  }
  const float *row(int64_t head, int64_t i) const { return &values[(head * n + i) * k]; }
};

MlaExpandedSpec expanded(DType weight, int64_t heads, int64_t nope, int64_t value, int64_t latent, int64_t rope) {
  MlaExpandedSpec spec;
  spec.weight = weight;
  spec.heads = heads;
  spec.nope = nope;
  spec.value = value;
  spec.latent = latent;
  spec.rope = rope;
  spec.width = (latent + rope + 15) / 16 * 16;
  spec.qHead = nope + 3;
  spec.qStride = heads * spec.qHead + 1;
  spec.ropeHead = rope + 1;
  spec.ropeStride = heads * spec.ropeHead + 2;
  spec.outHead = value + 5;
  spec.outStride = heads * spec.outHead + 1;
  spec.scale = 1.0 / std::sqrt(double(nope + rope) * latent);
  return spec;
}

TEST(MlaExpanded, AgreesWithTheDefinition) {
  std::vector<MlaExpandedSpec> plain;
  for (auto [weight, heads, nope, value, latent, rope] : {std::tuple{DType::BF16, 2, 32, 32, 64, 16},
                                                          {DType::F32, 1, 5, 3, 7, 2},
                                                          {DType::F16, 3, 40, 70, 20, 0},
                                                          {DType::BF16, 2, 33, 128, 48, 8},
                                                          {DType::F32, 2, 64, 150, 24, 6},
                                                          {DType::BF16, 1, 16, 16, 130, 7}})
    plain.push_back(expanded(weight, heads, nope, value, latent, rope));
  plain = overCaches(plain);
  std::vector<KernelSpec> specs(plain.begin(), plain.end());
  Kernels kernels(specs);
  Random random(5);
  const std::vector<int64_t> lengths = {1, 64, 65, 200, 70};
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<MlaExpandedSpec>(specs[index]);
    SCOPED_TRACE("spec " + std::to_string(index));
    // What rounding to bf16 changes at most, relatively.
    const double halfRounding = spec.cache == DType::BF16 ? std::ldexp(1.0, -9) : 0;
    Cache cache(lengths, spec, random);
    HeadWeights uk(spec.weight, spec.heads, spec.nope, spec.latent, random);
    HeadWeights uv(spec.weight, spec.heads, spec.value, spec.latent, random);
    // Runs of one token, of a part of a sequence (with a page's border inside it), of a sequence out of order.
    std::vector<int32_t> slots = {0, 1, 1}, positions = {0, 63, 62};
    for (int32_t j = 57; j < 72; ++j) {
      slots.push_back(3);
      positions.push_back(j);
    }
    for (auto [slot, position] : {std::pair{2, 64}, {3, 199}, {3, 100}, {4, 69}, {4, 1}, {4, 63}, {4, 64}, {4, 0}}) {
      slots.push_back(slot);
      positions.push_back(position);
    }
    int64_t tokens = slots.size();
    Array<float> q(random.normals(tokens * spec.qStride)), ropeQ(random.normals(tokens * spec.ropeStride));
    Array<float> out(tokens * spec.outStride, kUntouched);
    Array<int32_t> slotArray(slots), positionArray(positions);
    moe_step step{tokens, 0, cache.pagesPerSlot};
    kernels.run(index,
                {&q, &ropeQ, &positionArray, &slotArray, &cache.table, cache.pages(), &uk.panels, &uv.panels, &out},
                step, kernels.gridOf(index, step));

    std::vector<bool> owned(out.count());
    auto product = [&](const float *row, const float *entry, double &magnitude) {
      double sum = 0;
      magnitude = 0;
      for (int64_t c = 0; c < spec.latent; ++c) {
        sum += double(row[c]) * entry[c];
        magnitude += std::fabs(double(row[c]) * entry[c]);
      }
      return sum;
    };
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t h = 0; h < spec.heads; ++h) {
        const float *query = &q[t * spec.qStride + h * spec.qHead];
        const float *rotated = &ropeQ[t * spec.ropeStride + h * spec.ropeHead];
        int64_t seen = positions[t] + 1;
        std::vector<double> p(seen);
        double top = -std::numeric_limits<double>::infinity(), total = 0, scoreError = 0;
        for (int64_t j = 0; j < seen; ++j) {
          const float *entry = cache.entry(slots[t], j, spec.width);
          double magnitude = 0, ofKeys = 0, part = 0;
          for (int64_t i = 0; i < spec.nope; ++i) {
            double factor = stored(spec.cache, query[i]), key = product(uk.row(h, i), entry, part);
            p[j] += factor * key;
            magnitude += std::fabs(factor) * part;
            ofKeys += std::fabs(factor * key) * halfRounding;
          }
          for (int64_t i = 0; i < spec.rope; ++i) {
            double term = double(stored(spec.cache, rotated[i])) * entry[spec.latent + i];
            p[j] += term;
            magnitude += std::fabs(term);
          }
          p[j] *= spec.scale;
          int64_t roundings = spec.latent + spec.nope + spec.rope + 2;
          double error = magnitude * std::ldexp(double(roundings), -24) + ofKeys;
          scoreError = std::max(scoreError, error * spec.scale);
          top = std::max(top, p[j]);
        }
        for (double &value : p)
          total += value = std::exp(value - top);
        for (int64_t i = 0; i < spec.value; ++i) {
          double sum = 0, magnitude = 0, ofValues = 0, part = 0;
          for (int64_t j = 0; j < seen; ++j) {
            double term = p[j] / total * product(uv.row(h, i), cache.entry(slots[t], j, spec.width), part);
            sum += term;
            magnitude += p[j] / total * part;
            ofValues += std::fabs(term);
          }
          // As in the absorbed form; a value has `latent` roundings more, and one to bf16.
          double tolerance = magnitude * std::ldexp(double(seen + spec.latent + 30), -24) +
                             ofValues * (2 * scoreError + 3 * halfRounding);
          size_t at = t * spec.outStride + h * spec.outHead + i;
          owned[at] = true;
          ASSERT_TRUE(near(out[at], sum, tolerance)) << "token " << t << " head " << h << " element " << i;
        }
      }
    for (size_t i = 0; i < out.count(); ++i)
      ASSERT_TRUE(owned[i] || out[i] == kUntouched) << "element " << i << " is nobody's";

    std::vector<float> together(out.begin(), out.end());
    std::fill(out.begin(), out.end(), kUntouched);
    step.tokens = 1;
    for (int64_t t = 0; t < tokens; ++t)
      kernels.runOnce(index,
                      {q.begin() + t * spec.qStride, ropeQ.begin() + t * spec.ropeStride, positionArray.begin() + t,
                       slotArray.begin() + t, cache.table.data(), cache.pages()->data(), uk.panels.data(),
                       uv.panels.data(), out.begin() + t * spec.outStride},
                      step, kernels.gridOf(index, step));
    EXPECT_EQ(std::memcmp(together.data(), out.data(), out.size()), 0) << "a token alone has other bits";
  }
}

/// Rounded rows beside those of f32 are what a kernel of its own makes of these.
TEST(MlaExpanded, StoresRoundedRowsToo) {
  const int64_t heads = 2, value = 64, width = heads * value;
  MlaExpandedSpec plain = expanded(DType::BF16, heads, 16, value, 24, 8);
  plain.outHead = value;
  plain.outStride = width + 3;
  MlaExpandedSpec toCodes = plain, toBf16 = plain;
  toCodes.output = DType::U8;
  toCodes.outputOffset = 8;
  toCodes.roundedHead = QuantizeRowsSpec::rowBytes(value);
  toCodes.roundedStride = QuantizeRowsSpec::rowBytes(width) + 5;
  toBf16.output = DType::BF16;
  toBf16.roundedHead = value;
  toBf16.roundedStride = width + 1;
  QuantizeRowsSpec codes{width, QuantizeRowsSpec::group, plain.outStride, toCodes.roundedStride, 8};
  CastRowsSpec cast{DType::BF16, width, plain.outStride, toBf16.roundedStride};
  Kernels kernels({toCodes, codes, toBf16, cast});
  Random random(12);
  Cache cache({70, 30}, plain, random);
  HeadWeights uk(plain.weight, heads, plain.nope, plain.latent, random);
  HeadWeights uv(plain.weight, heads, value, plain.latent, random);
  Array<int32_t> slots(std::vector<int32_t>{0, 0, 0, 1}), positions(std::vector<int32_t>{63, 64, 65, 7});
  const int64_t tokens = slots.count();
  Array<float> q(random.normals(tokens * plain.qStride)), ropeQ(random.normals(tokens * plain.ropeStride));
  const moe_step step{tokens, 0, cache.pagesPerSlot};
  for (size_t index : {0, 2}) {
    const int64_t bytes = index == 0 ? toCodes.roundedStride : 2 * toBf16.roundedStride;
    Array<float> out(tokens * plain.outStride, kUntouched);
    Array<uint8_t> found(tokens * bytes), expected(tokens * bytes);
    kernels.run(index,
                {&q, &ropeQ, &positions, &slots, &cache.table, cache.pages(), &uk.panels, &uv.panels, &out, &found},
                step, kernels.gridOf(index, step));
    kernels.run(index + 1, {&out, &expected}, step, kernels.gridOf(index + 1, step));
    EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size()), 0) << "kernel " << index;
  }
}

/// More tokens than a block holds, in one run: each has the bits it has alone.
TEST(MlaExpanded, RunsGoOnInTheNextBlock) {
  MlaExpandedSpec spec = expanded(DType::BF16, 1, 8, 8, 16, 4);
  spec.runFrom = 600;
  spec.cache = DType::BF16;
  Kernels kernels({spec});
  Random random(8);
  int64_t tokens = MlaExpandedSpec::tokenBlock + 100;
  Cache cache({tokens}, spec.latent + spec.rope, spec.width, random, spec.cache);
  HeadWeights uk(spec.weight, 1, spec.nope, spec.latent, random), uv(spec.weight, 1, spec.value, spec.latent, random);
  Array<float> q(random.normals(tokens * spec.qStride)), ropeQ(random.normals(tokens * spec.ropeStride));
  Array<float> out(tokens * spec.outStride, kUntouched), alone(tokens * spec.outStride, kUntouched);
  Array<int32_t> slots(tokens, 0), positions(tokens, 0);
  std::iota(positions.begin(), positions.end(), 0);
  moe_step step{tokens, 0, cache.pagesPerSlot};
  kernels.run(0, {&q, &ropeQ, &positions, &slots, &cache.table, cache.pages(), &uk.panels, &uv.panels, &out}, step,
              kernels.gridOf(0, step));
  spec.runFrom = 1;
  Kernels single({spec});
  step.tokens = 1;
  for (int64_t t = 0; t < tokens; ++t)
    single.runOnce(0,
                   {q.begin() + t * spec.qStride, ropeQ.begin() + t * spec.ropeStride, positions.begin() + t,
                    slots.begin() + t, cache.table.data(), cache.pages()->data(), uk.panels.data(), uv.panels.data(),
                    alone.begin() + t * spec.outStride},
                   step, 1);
  EXPECT_EQ(std::memcmp(alone.data(), out.data(), out.size()), 0);
}

TEST(MlaExpanded, LeavesTokensOfShortRunsAlone) {
  MlaExpandedSpec spec = expanded(DType::BF16, 2, 24, 20, 24, 8);
  Random weights(9);
  HeadWeights uk(spec.weight, 2, spec.nope, spec.latent, weights), uv(spec.weight, 2, spec.value, spec.latent, weights);
  Array<float> q(0), ropeQ(0);
  expectRowsOfRuns(spec, &MlaExpandedSpec::runFrom, /*from=*/true,
                   [&](Random &random, int64_t tokens, auto &positions, auto &slots, Cache &cache, auto &out) {
                     if (q.count() == 0) {
                       q = Array<float>(random.normals(tokens * spec.qStride));
                       ropeQ = Array<float>(random.normals(tokens * spec.ropeStride));
                     }
                     return std::vector<Buffer *>{
                         &q, &ropeQ, &positions, &slots, &cache.table, cache.pages(), &uk.panels, &uv.panels, &out};
                   });
}

/// An entry that a token may not see must not reach it, though its page is expanded for those that see it.
TEST(MlaExpanded, NaNOfALaterEntryStaysBehind) {
  for (DType type : {DType::F32, DType::BF16}) {
    MlaExpandedSpec spec = expanded(DType::BF16, 2, 16, 16, 16, 4);
    spec.cache = type;
    Kernels kernels({spec});
    for (int64_t bad : {89, 90}) { // beside an entry that is seen, and not
      SCOPED_TRACE("entry " + std::to_string(bad) + (type == DType::F32 ? " of f32" : " of bf16"));
      Random random(10);
      Cache cache({100}, spec.latent + spec.rope, spec.width, random, type);
      cache.entry(0, bad, spec.width)[3] = kNaN;
      HeadWeights uk(spec.weight, 2, spec.nope, spec.latent, random);
      HeadWeights uv(spec.weight, 2, spec.value, spec.latent, random);
      Array<float> q(random.normals(20 * spec.qStride)), ropeQ(random.normals(20 * spec.ropeStride));
      Array<float> out(20 * spec.outStride, kUntouched);
      Array<int32_t> slots(20, 0), positions(20, 0);
      std::iota(positions.begin(), positions.end(), 80);
      moe_step step{20, 0, cache.pagesPerSlot};
      kernels.run(0, {&q, &ropeQ, &positions, &slots, &cache.table, cache.pages(), &uk.panels, &uv.panels, &out}, step,
                  kernels.gridOf(0, step));
      for (int64_t t = 0; t < 20; ++t)
        for (int64_t h = 0; h < 2; ++h)
          for (int64_t i = 0; i < spec.value; ++i)
            EXPECT_EQ(std::isnan(out[t * spec.outStride + h * spec.outHead + i]), 80 + t >= bad) << "token " << t;
    }
  }
}

TEST(CacheAppend, WritesOneEntryAndItsPadding) {
  std::vector<KernelSpec> specs;
  for (auto [latent, rope, width] : {std::tuple{16, 16, 32}, {20, 6, 32}, {64, 16, 96}, {33, 1, 48}})
    for (DType type : {DType::F32, DType::BF16}) {
      CacheAppendSpec spec;
      spec.latent = latent;
      spec.rope = rope;
      spec.width = width;
      spec.latentStride = latent + 2;
      spec.ropeStride = rope + 5;
      spec.cache = type;
      specs.push_back(spec);
    }
  Kernels kernels(specs);
  Random random(4);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<CacheAppendSpec>(specs[index]);
    Cache cache({70, 64, 1}, spec.width, spec.width, random, spec.cache);
    std::vector<int32_t> slots = {0, 0, 1, 2, 0}, positions = {69, 70, 64, 0, 3};
    Array<float> latent(random.normals(5 * spec.latentStride)), rope(random.normals(5 * spec.ropeStride));
    Array<int32_t> slotArray(slots), positionArray(positions);
    // Half-way cases, which go to the even neighbour, and what conversions get wrong.
    int64_t at = spec.latentStride;
    for (uint32_t bits : {0x3F808000u, 0x3F818000u, 0x3F7FFFFFu, 0x7F7FFFFFu, 0x00000001u, 0x80012345u, 0x7FFFFFFFu,
                          0xFF800000u, 0x80000000u})
      latent[at++] = std::bit_cast<float>(bits);
    Buffer *pages = cache.pages();
    Array<float> expected(std::vector<float>(cache.entries.begin(), cache.entries.end()));
    for (int64_t t = 0; t < 5; ++t) {
      float *entry = expected.begin() + (cache.entry(slots[t], positions[t], spec.width) - cache.entries.begin());
      for (int64_t i = 0; i < spec.width; ++i)
        entry[i] = stored(spec.cache, i < spec.latent               ? latent[t * spec.latentStride + i]
                                      : i < spec.latent + spec.rope ? rope[t * spec.ropeStride + i - spec.latent]
                                                                    : 0.0f);
    }
    moe_step step{5, 0, cache.pagesPerSlot};
    kernels.run(index, {&latent, &rope, &positionArray, &slotArray, &cache.table, pages}, step,
                kernels.gridOf(index, step));
    for (size_t i = 0; i < expected.count(); ++i) {
      float found = spec.cache == DType::BF16 ? bf16ToFloat(cache.halves[i]) : cache.entries[i];
      ASSERT_TRUE(std::bit_cast<uint32_t>(found) == std::bit_cast<uint32_t>(expected[i]) ||
                  (std::isnan(found) && std::isnan(expected[i])))
          << "spec " << index << " element " << i << " is " << found << ", expected " << expected[i];
    }
  }
}

/// Entries in codes, byte by byte as the definition has them. Bytes of nobody stay what they were.
TEST(CacheAppend, CodesAreThoseOfTheDefinition) {
  std::vector<KernelSpec> specs;
  for (auto [latent, rope] : {std::tuple{512, 64}, {16, 16}, {130, 6}, {255, 1}, {129, 0}, {3, 2}})
    for (CacheCodes codes : {CacheCodes::Int8, CacheCodes::F8E4M3}) {
      CacheAppendSpec spec{latent, rope, (latent + rope + 15) / 16 * 16, latent + 2, rope + 5, DType::BF16, codes};
      specs.push_back(spec);
    }
  Kernels kernels(specs);
  Random random(13);
  const float largest = std::numeric_limits<float>::max(), infinity = std::numeric_limits<float>::infinity();
  // What the elements of a group may be, beside numbers of any size.
  const std::vector<std::function<float(int64_t)>> kinds = {
      [](int64_t) { return 0.0f; },
      [](int64_t i) { return i % 2 ? -0.0f : 0.0f; },
      // Scale 1 in int8, and all that lies between two codes; a bit less or more, too.
      [](int64_t i) { return i == 0 ? -127.0f : float(i) - 0.5f; },
      [](int64_t i) { return i == 0 ? 127.0f : std::nextafter(float(i % 127) - 60.5f, i % 3 ? 100.0f : -100.0f); },
      // The same in e4m3: between codes, small ones, and what rounds to zero, of both signs.
      [](int64_t i) {
        return i == 0 ? 448.0f : (f8e4m3ToFloat(i % 126) + f8e4m3ToFloat(i % 126 + 1)) / (i % 2 ? -2 : 2);
      },
      [](int64_t i) {
        return i == 0 ? -448.0f : std::nextafter(f8e4m3ToFloat(i % 126 + 1) - 0x1p-10f, i % 2 ? 0.0f : 500.0f);
      },
      [](int64_t i) { return i == 0 ? 448.0f : std::ldexp(i % 2 ? -1.0f : 1.0f, -5 - int(i)); },
      // Scales that are subnormal, whose inverse is too large, or whose greatest code would be.
      [](int64_t i) { return std::ldexp(float(i + 1), -126); },
      [](int64_t i) { return std::ldexp(float(i % 5), -149); },
      [=](int64_t i) { return i % 2 ? -largest : largest / float(i + 1); },
      // No numbers.
      [](int64_t i) { return i == 1 ? kNaN : 1.0f; },
      [](int64_t i) { return i == 0 ? -kNaN : -0.0f; },
      [=](int64_t i) { return i == 2 ? -infinity : float(i); },
  };
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<CacheAppendSpec>(specs[index]);
    SCOPED_TRACE("spec " + std::to_string(index));
    const CodedEntry layout{spec.latent, spec.rope};
    // Each group of each entry is of another kind, or of the kind of none.
    const int64_t tokens = 2 * std::ssize(kinds);
    Cache cache({tokens + 60, 1}, 16, 16, random);
    Array<float> latent(random.normals(tokens * spec.latentStride)), rope(random.normals(tokens * spec.ropeStride));
    Array<int32_t> slots(tokens, 0), positions(tokens, 0);
    std::iota(positions.begin(), positions.end(), 50); // over the border of a page
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t i = 0; i < spec.latent; ++i)
        if (size_t kind = (t + i / CodedEntry::group) % (kinds.size() + 3); kind < kinds.size())
          latent[t * spec.latentStride + i] = kinds[kind](i % CodedEntry::group);
    if (spec.rope > 1)
      rope[1] = kNaN;
    Array<uint8_t> pages(cache.entries.count() / 16 * layout.stride(), 0xA5), expected(pages.count(), 0xA5);
    for (int64_t t = 0; t < tokens; ++t)
      encode(layout, spec.codes, &latent[t * spec.latentStride], rope.begin() + t * spec.ropeStride,
             &expected[(cache.entry(0, positions[t], 16) - cache.entries.begin()) / 16 * layout.stride()]);
    moe_step step{tokens, 0, cache.pagesPerSlot};
    kernels.run(index, {&latent, &rope, &positions, &slots, &cache.table, &pages}, step, kernels.gridOf(index, step));
    for (size_t i = 0; i < pages.count(); ++i)
      ASSERT_EQ(pages[i], expected[i]) << "byte " << i % layout.stride() << " of entry " << i / layout.stride();
  }
}

/// A group that held no numbers is none for all that see it, and for nobody else.
TEST(MlaAttention, NaNOfAGroupOfCodes) {
  std::vector<MlaAttentionSpec> specs = overCaches<MlaAttentionSpec>({attention(2, 136, 4)});
  specs.erase(specs.begin(), specs.begin() + 2);
  Attention kernels(specs);
  Random random(14);
  for (size_t index = 0; index < specs.size(); ++index) {
    const MlaAttentionSpec &spec = specs[index];
    const CodedEntry layout{spec.latent, spec.rope};
    Cache cache({100}, spec, random);
    float *entry = cache.entry(0, 70, spec.width);
    entry[130] = -std::numeric_limits<float>::infinity();
    encode(layout, spec.codes, entry, entry + spec.latent,
           &cache.bytes[(entry - cache.entries.begin()) / spec.width * layout.stride()]);
    Array<float> q(random.normals(2 * spec.qStride)), out(2 * spec.outStride, kUntouched);
    Array<int32_t> slots(2, 0), positions(std::vector<int32_t>{69, 70});
    kernels.run(index, q, positions, slots, cache, out);
    for (int64_t t = 0; t < 2; ++t)
      for (int64_t h = 0; h < spec.heads; ++h)
        for (int64_t i = 0; i < spec.latent; ++i)
          ASSERT_EQ(std::isnan(out[t * spec.outStride + h * spec.outHead + i]), t == 1) << index << " " << i;
  }
}

} // namespace
} // namespace moec::cpu
