// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Harness.h"

#include <cmath>
#include <limits>

namespace moec::cpu {
namespace {

const int64_t kWidths[] = {1, 15, 16, 17, 48, 100};

/// Runs a kernel whose only output is `out` and compares rows: `expected(t, i)` gives value and tolerance, for i
/// below `width`; what lies between rows must stay.
struct Expected {
  double value, tolerance;
};
void checkRows(Kernels &kernels, size_t index, std::vector<Buffer *> args, Array<float> &out, int64_t rows,
               int64_t width, int64_t stride, moe_step step, llvm::function_ref<Expected(int64_t, int64_t)> expected) {
  SCOPED_TRACE("spec " + std::to_string(index));
  args.push_back(&out);
  kernels.run(index, args, step, kernels.gridOf(index, step));
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < stride; ++i) {
      Expected e = i < width ? expected(t, i) : Expected{kUntouched, 0};
      ASSERT_TRUE(near(out[t * stride + i], e.value, e.tolerance)) << "row " << t << " element " << i;
    }
}

TEST(Embed, LooksUpEveryFormat) {
  std::vector<KernelSpec> specs;
  for (DType type : {DType::F32, DType::BF16, DType::F16})
    for (int64_t width : kWidths)
      specs.push_back(EmbedSpec{type, width, width + 2});
  Kernels kernels(specs);
  Random random(1);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<EmbedSpec>(specs[index]);
    int64_t vocabulary = 9, size = byteSize(spec.table);
    Array<uint8_t> table(vocabulary * spec.width * size);
    std::vector<float> values;
    for (int64_t i = 0; i < vocabulary * spec.width; ++i) {
      float value = random.normal();
      uint16_t bits = spec.table == DType::BF16 ? floatToBf16(value) : floatToF16(value);
      std::memcpy(&table[i * size], spec.table == DType::F32 ? static_cast<void *>(&value) : &bits, size);
      values.push_back(spec.table == DType::F32    ? value
                       : spec.table == DType::BF16 ? bf16ToFloat(bits)
                                                   : f16ToFloat(bits));
    }
    Array<int32_t> tokens(std::vector<int32_t>{8, 0, 3, 3});
    Array<float> out(4 * spec.outStride, kUntouched);
    checkRows(kernels, index, {&tokens, &table}, out, 4, spec.width, spec.outStride, {4, 0, 0},
              [&](int64_t t, int64_t i) { return Expected{values[tokens[t] * spec.width + i], 0}; });
  }
}

TEST(GatherRows, Copies) {
  std::vector<KernelSpec> specs;
  for (int64_t width : kWidths)
    specs.push_back(GatherRowsSpec{width, width + 1, width + 2});
  Kernels kernels(specs);
  Random random(2);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<GatherRowsSpec>(specs[index]);
    Array<float> x(random.normals(6 * spec.xStride)), out(3 * spec.outStride, kUntouched);
    Array<int32_t> rows(std::vector<int32_t>{5, 0, 5});
    checkRows(kernels, index, {&x, &rows}, out, 3, spec.width, spec.outStride, {6, 3, 0},
              [&](int64_t r, int64_t i) { return Expected{x[rows[r] * spec.xStride + i], 0}; });
  }
}

TEST(RmsNorm, Normalizes) {
  std::vector<KernelSpec> specs;
  for (int64_t width : kWidths)
    for (Rows rows : {Rows::T, Rows::R})
      for (bool weight : {true, false})
        specs.push_back(RmsNormSpec{width, width + 1, width + 2, 1e-6, rows, weight});
  Kernels kernels(specs);
  Random random(3);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<RmsNormSpec>(specs[index]);
    int64_t rows = 4;
    Array<float> x(random.normals(rows * spec.xStride)), g(random.normals((spec.width + 15) / 16 * 16)),
        out(rows * spec.outStride, kUntouched);
    std::fill_n(x.begin(), spec.width, 0.0f);
    for (int64_t i = 0; i < spec.width; ++i)
      x[spec.xStride + i] *= 1e-4f; // where eps matters
    if (!spec.weight)
      std::fill(g.begin(), g.end(), 1.0f);
    auto arguments = spec.weight ? std::vector<Buffer *>{&x, &g} : std::vector<Buffer *>{&x};
    checkRows(kernels, index, arguments, out, rows, spec.width, spec.outStride, stepOf(spec.rows, rows),
              [&](int64_t t, int64_t i) {
                double squares = 0;
                for (int64_t j = 0; j < spec.width; ++j)
                  squares += double(x[t * spec.xStride + j]) * x[t * spec.xStride + j];
                double value = g[i] * x[t * spec.xStride + i] / std::sqrt(squares / spec.width + spec.eps);
                // Half the sum's error of width / 16 + 5 roundings, then mean, eps, root, quotient and two products.
                return Expected{value, std::fabs(value) * std::ldexp(spec.width / 32.0 + 8, -24)};
              });
  }
}

TEST(Elementwise, AddsAndGates) {
  std::vector<KernelSpec> specs;
  for (int64_t width : kWidths)
    for (bool swiglu : {false, true})
      specs.push_back(ElementwiseSpec{swiglu, width, width + 1, width + 2, width + 3, swiglu ? Rows::R : Rows::T});
  Kernels kernels(specs);
  Random random(4);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<ElementwiseSpec>(specs[index]);
    Array<float> a(random.normals(4 * spec.aStride, 5)), b(random.normals(4 * spec.bStride)),
        out(4 * spec.outStride, kUntouched);
    // Row 3: what does not fit in exp, then NaN.
    a[3 * spec.aStride] = -200;
    if (spec.width > 2) {
      a[3 * spec.aStride + 1] = 200;
      a[3 * spec.aStride + 2] = std::numeric_limits<float>::quiet_NaN();
    }
    moe_step step = stepOf(spec.rows, 4);
    checkRows(kernels, index, {&a, &b}, out, 4, spec.width, spec.outStride, step, [&](int64_t t, int64_t i) {
      double left = a[t * spec.aStride + i], right = b[t * spec.bStride + i];
      double value = spec.swiglu ? left / (1 + std::exp(-left)) * right : left + right;
      // exp, sum, division, product.
      return Expected{value, std::fabs(value) * std::ldexp(5.0, -24) + 1e-30};
    });
  }
}

TEST(FakeQuantize, RoundsEachGroup) {
  std::vector<KernelSpec> specs;
  for (CodeKind codes : {CodeKind::Int8, CodeKind::F8E4M3})
    for (int64_t width : kWidths)
      for (int64_t group : {width, int64_t(32)}) {
        FakeQuantizeSpec spec;
        spec.codes = codes;
        spec.width = width;
        spec.group = group;
        spec.xStride = width + 1;
        spec.outStride = width + 2;
        spec.rowsPerToken = 2;
        specs.push_back(spec);
      }
  Kernels kernels(specs);
  Random random(5);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<FakeQuantizeSpec>(specs[index]);
    Array<float> x(random.normals(6 * spec.xStride, 5)), out(6 * spec.outStride, kUntouched);
    for (int64_t i = 0; i < spec.width; ++i) {
      x[5 * spec.xStride + i] = 0; // has no scale
      if (i % 3 == 1)              // values far below the largest: subnormal codes of e4m3
        x[4 * spec.xStride + i] *= 0.001f;
    }
    checkRows(kernels, index, {&x}, out, 6, spec.width, spec.outStride, {3, 0, 0}, [&](int64_t t, int64_t i) {
      const float *row = x.begin() + t * spec.xStride;
      int64_t begin = i / spec.group * spec.group;
      float most = 0;
      for (int64_t c = begin; c < std::min(spec.width, begin + spec.group); ++c)
        most = std::max(most, std::fabs(row[c]));
      float scale = most / (spec.codes == CodeKind::Int8 ? 127.0f : 448.0f);
      float inverse = scale > 0 ? 1 / scale : 0;
      double exact = static_cast<double>(row[i]) * inverse;
      float code = spec.codes == CodeKind::Int8 ? static_cast<float>(std::nearbyint(exact))
                                                : f8e4m3ToFloat(floatToF8e4m3(static_cast<float>(exact)));
      return Expected{static_cast<double>(code * scale), 0};
    });
  }
}

TEST(QuantizeRows, GivesWhatFakeQuantizeGives) {
  for (int64_t scaleCols : {32, 64, 96}) {
    QuantizeRowsSpec spec;
    spec.scaleCols = scaleCols;
    spec.width = 96;
    spec.xStride = 101;
    spec.outStride = QuantizeRowsSpec::rowBytes(spec.width) + 5;
    spec.offset = 8;
    spec.rowsPerToken = 2;
    FakeQuantizeSpec fake;
    fake.width = spec.width;
    fake.group = scaleCols;
    fake.xStride = spec.xStride;
    fake.outStride = spec.width;
    fake.rowsPerToken = 2;
    Kernels kernels({spec, fake});
    Random random(6);
    constexpr int64_t rows = 6;
    Array<float> x(random.normals(rows * spec.xStride, 5)), values(rows * spec.width);
    std::fill_n(x.begin(), scaleCols, 0.0f); // has no scale
    Array<uint8_t> out(rows * spec.outStride, 0xEE);
    moe_step step{3, 0, 0};
    kernels.run(0, {&x, &out}, step, kernels.gridOf(0, step));
    kernels.run(1, {&x, &values}, step, kernels.gridOf(1, step));
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t g = 0; g < spec.width / QuantizeRowsSpec::group; ++g) {
        const uint8_t *record = out.begin() + t * spec.outStride + g * QuantizeRowsSpec::recordBytes;
        float scale;
        int32_t sum, expected = 0;
        std::memcpy(&scale, record + QuantizeRowsSpec::scaleAt, 4);
        std::memcpy(&sum, record + QuantizeRowsSpec::sumAt, 4);
        for (int64_t i = 0; i < QuantizeRowsSpec::group; ++i) {
          auto code = static_cast<int8_t>(record[i]);
          expected -= spec.offset * code;
          ASSERT_EQ(static_cast<float>(code) * scale, values[t * spec.width + g * QuantizeRowsSpec::group + i]);
        }
        ASSERT_EQ(sum, expected);
      }
      for (int64_t i = QuantizeRowsSpec::rowBytes(spec.width); i < spec.outStride; ++i)
        ASSERT_EQ(out[t * spec.outStride + i], 0xEE);
    }
  }
}

/// Parts find their own arguments and the results of those before.
TEST(Rows, PartsGiveWhatTheyGiveAlone) {
  constexpr int64_t width = 96, rows = 5;
  RmsNormSpec norm;
  norm.width = norm.xStride = norm.outStride = width;
  norm.eps = 1e-6;
  ElementwiseSpec add;
  add.width = add.aStride = add.bStride = add.outStride = width;
  QuantizeRowsSpec quantize;
  quantize.width = quantize.xStride = width;
  quantize.scaleCols = 32;
  quantize.offset = 8;
  quantize.outStride = QuantizeRowsSpec::rowBytes(width);
  RmsNormSpec plain = norm; // has an argument less
  plain.weight = false;
  Kernels kernels({norm, add, quantize, RowsSpec{{norm, add, quantize}}, RowsSpec{{plain, add, quantize}}});
  Random random(9);
  Array<float> x(random.normals(rows * width)), g(random.normals(width)), ones(width, 1.0f);
  moe_step step{rows, 0, 0};
  std::vector<std::string> results;
  for (auto [together, weight] : {std::pair(false, true), {true, true}, {false, false}, {true, false}}) {
    Array<float> normed(rows * width, kUntouched), sum(rows * width, kUntouched);
    Array<uint8_t> codes(rows * quantize.outStride, 0xEE);
    if (together && weight) {
      kernels.run(3, {&x, &g, &normed, &normed, &x, &sum, &sum, &codes}, step, kernels.gridOf(3, step));
    } else if (together) {
      kernels.run(4, {&x, &normed, &normed, &x, &sum, &sum, &codes}, step, kernels.gridOf(4, step));
    } else {
      kernels.run(0, {&x, weight ? &g : &ones, &normed}, step, kernels.gridOf(0, step));
      kernels.run(1, {&normed, &x, &sum}, step, kernels.gridOf(1, step));
      kernels.run(2, {&sum, &codes}, step, kernels.gridOf(2, step));
    }
    results.push_back(normed.contents() + sum.contents() + codes.contents());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[2], results[3]);
  EXPECT_NE(results[0], results[2]);
}

TEST(CastRows, RoundsToNearestEven) {
  for (int64_t width : kWidths) {
    CastRowsSpec stored;
    stored.width = width;
    stored.xStride = width + 1;
    stored.outStride = width + 3;
    stored.rowsPerToken = 2;
    CastRowsSpec widened = stored;
    widened.to = DType::F32;
    Kernels kernels({stored, widened});
    Random random(7);
    constexpr int64_t rows = 4;
    Array<float> x(random.normals(rows * stored.xStride, 5)), floats(rows * stored.outStride, kUntouched);
    x[0] = std::numeric_limits<float>::quiet_NaN();
    x[stored.xStride] = 1 + std::ldexp(1.0f, -8); // halfway, down to even
    x[2 * stored.xStride] = 1 + std::ldexp(3.0f, -8);
    x[3 * stored.xStride] = std::ldexp(3.0f, -130);
    Array<uint16_t> out(rows * stored.outStride, 0xEEEE);
    moe_step step{rows / 2, 0, 0};
    kernels.run(0, {&x, &out}, step, kernels.gridOf(0, step));
    kernels.run(1, {&x, &floats}, step, kernels.gridOf(1, step));
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t i = 0; i < stored.outStride; ++i) {
        uint16_t bits = out[t * stored.outStride + i];
        float value = floats[t * stored.outStride + i];
        if (i >= width) {
          ASSERT_EQ(bits, 0xEEEE);
          ASSERT_EQ(value, kUntouched);
        } else if (t == 0 && i == 0) {
          ASSERT_TRUE(std::isnan(bf16ToFloat(bits)) && std::isnan(value));
        } else {
          ASSERT_EQ(bits, floatToBf16(x[t * stored.xStride + i]));
          ASSERT_EQ(value, bf16ToFloat(bits));
        }
      }
  }
}

TEST(RopeAngles, CosinesThenSines) {
  std::vector<KernelSpec> specs;
  for (int64_t half : {1, 8, 16, 21, 32}) {
    RopeAnglesSpec spec;
    for (int64_t i = 0; i < half; ++i)
      spec.invFreq.push_back(std::pow(10000.0, -double(i) / half));
    spec.factor = half == 8 ? 1.2079441541679836 : 1.0;
    specs.push_back(spec);
  }
  Kernels kernels(specs);
  for (size_t index = 0; index < specs.size(); ++index) {
    const auto &spec = std::get<RopeAnglesSpec>(specs[index]);
    int64_t half = spec.invFreq.size();
    Array<int32_t> positions(std::vector<int32_t>{0, 1, 4095, 163839, 9999999});
    Array<float> out(5 * 2 * half, kUntouched);
    checkRows(kernels, index, {&positions}, out, 5, 2 * half, 2 * half, {5, 0, 0}, [&](int64_t t, int64_t i) {
      float angle = float(positions[t]) * spec.invFreq[i % half];
      double value = spec.factor * (i < half ? std::cos(double(angle)) : std::sin(double(angle)));
      return Expected{value, std::fabs(value) * std::ldexp(1.0, -23)};
    });
  }
}

TEST(Rope, RotatesPairsInPlaceToo) {
  std::vector<KernelSpec> specs;
  for (auto [heads, dim] : {std::pair{1, 2}, {3, 10}, {4, 32}, {2, 64}, {5, 46}, {1, 18}})
    specs.push_back(RopeSpec{heads, dim, heads * (dim + 7) + 1, dim + 7, heads * (dim + 5) + 2, dim + 5});
  size_t apart = specs.size();
  for (size_t i = 0; i < apart; ++i) {
    RopeSpec same = std::get<RopeSpec>(specs[i]);
    same.outStride = same.xStride;
    same.outHead = same.xHead;
    specs.push_back(same);
  }
  Kernels kernels(specs);
  Random random(6);
  for (size_t index = 0; index < specs.size(); ++index) {
    SCOPED_TRACE("spec " + std::to_string(index));
    const auto &spec = std::get<RopeSpec>(specs[index]);
    int64_t tokens = 3;
    Array<float> x(random.normals(tokens * spec.xStride)), angles(random.normals(tokens * spec.dim)),
        out(tokens * spec.outStride, kUntouched);
    std::vector<float> before(x.begin(), x.end());
    bool inPlace = index >= apart;
    Array<float> &result = inPlace ? x : out;
    moe_step step{tokens, 0, 0};
    kernels.run(index, {&x, &angles, &result}, step, kernels.gridOf(index, step));
    std::vector<bool> owned(result.count());
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t h = 0; h < spec.heads; ++h)
        for (int64_t i = 0; i < spec.dim; ++i) {
          const float *pair = &before[t * spec.xStride + h * spec.xHead + i / 2 * 2];
          double cos = angles[t * spec.dim + i / 2], sin = angles[t * spec.dim + spec.dim / 2 + i / 2];
          double expected = i % 2 ? pair[0] * sin + pair[1] * cos : pair[0] * cos - pair[1] * sin;
          double magnitude = std::fabs(pair[0]) + std::fabs(pair[1]);
          size_t at = t * spec.outStride + h * spec.outHead + i;
          owned[at] = true;
          ASSERT_TRUE(near(result[at], expected, magnitude * (std::fabs(cos) + std::fabs(sin)) * std::ldexp(2.0, -24)))
              << "token " << t << " head " << h << " element " << i;
        }
    for (size_t i = 0; i < result.count(); ++i)
      ASSERT_TRUE(owned[i] || result[i] == (inPlace ? before[i] : kUntouched)) << "element " << i << " is nobody's";
  }
}

} // namespace
} // namespace moec::cpu
