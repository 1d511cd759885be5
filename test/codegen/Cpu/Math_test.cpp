// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Harness.h"

#include "codegen/Cpu/ByteSums.h"
#include "codegen/Cpu/Math.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/MLIRContext.h"

#include <cmath>
#include <limits>

namespace moec::cpu {
namespace {

/// Compiles a kernel that `emit` writes; task i works on floats 16 i .. 16 i + 15.
std::unique_ptr<Library> compile(const Level &level, llvm::function_ref<void(KernelBuilder &)> emit) {
  mlir::MLIRContext context(mlir::MLIRContext::Threading::DISABLED);
  loadKernelDialects(context);
  mlir::OwningOpRef<mlir::ModuleOp> module = mlir::ModuleOp::create(mlir::UnknownLoc::get(&context));
  KernelBuilder b(*module, level.isa);
  b.kernel("function", [&] { emit(b); });
  auto objects = [&]() -> Result<std::vector<std::string>> {
    MOEC_CHECK(lowerToLlvm(*module));
    MOEC_TRY(std::string object, generate(*module, level, Output::Object));
    return std::vector<std::string>{std::move(object)};
  };
  return std::make_unique<Library>(objects());
}

float fromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

/// Distance in units of the last place of f32 at `expected`.
double ulps(float found, double expected) {
  float rounded = static_cast<float>(std::fabs(expected));
  double ulp = std::nextafter(rounded, std::numeric_limits<float>::infinity()) - double(rounded);
  return std::fabs(found - expected) / ulp;
}

void pad(std::vector<float> &values) { values.resize((values.size() + kLanes - 1) / kLanes * kLanes, 0.0f); }

TEST(Math, Exp) {
  // Bit patterns of the whole range, NaNs and infinities included, in steps of a prime.
  std::vector<float> inputs = {0.0f, -0.0f, 1.0f, 88.72283f, 88.72284f, -87.33655f, -103.97f, -104.0f, -1e30f, 1e30f};
  float inf = std::numeric_limits<float>::infinity();
  inputs.insert(inputs.end(), {inf, -inf, std::numeric_limits<float>::quiet_NaN()});
  for (uint64_t bits = 0; bits < uint64_t(1) << 32; bits += 1499)
    inputs.push_back(fromBits(bits));
  // Where results are neither 0 nor 1 nor inf.
  for (uint32_t bits = 0x33000000; bits < 0x42D00000; bits += 251)
    inputs.insert(inputs.end(), {fromBits(bits), -fromBits(bits)});
  pad(inputs);
  for (const Level *level : hostLevels()) {
    auto library = compile(*level, [](KernelBuilder &b) {
      Ptr x = b.arg(0, b.f32), y = b.arg(1, b.f32);
      b.tasks([&](Val t) { (y + t * kLanes).store(exp(b, (x + t * kLanes).load(kLanes))); });
    });
    Array<float> x(inputs), y(inputs.size());
    void *args[] = {x.data(), y.data()};
    moe_step step{1, 0, 0};
    library->symbol("function")(args, &step, 0, inputs.size() / kLanes);
    double worst = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (std::isnan(inputs[i])) {
        ASSERT_TRUE(std::isnan(y[i]));
        continue;
      }
      double expected = std::exp(double(inputs[i]));
      if (expected >= double(std::numeric_limits<float>::max()) * (1 + std::ldexp(1.0, -25)))
        ASSERT_EQ(y[i], inf) << inputs[i];
      else if (expected < std::numeric_limits<float>::min())
        ASSERT_LE(std::fabs(y[i] - expected), 1.5 * std::numeric_limits<float>::denorm_min()) << inputs[i];
      else
        worst = std::max(worst, ulps(y[i], expected));
    }
    EXPECT_LE(worst, 1.0) << level->name.str();
    RecordProperty("worst_ulps_" + level->name.str(), std::to_string(worst));
  }
}

TEST(Math, SinAndCos) {
  std::vector<float> inputs = {0.0f, -0.0f};
  for (uint32_t bits = 1; bits < 0x4B800000; bits += 499)
    inputs.insert(inputs.end(), {fromBits(bits), -fromBits(bits)});
  // The floats beside multiples of pi / 2, where either function nearly vanishes.
  for (int64_t n = 1; n < 10680000; n += 13) {
    float a = n * (std::acos(-1.0) / 2);
    inputs.insert(inputs.end(), {std::nextafter(a, 0.0f), a, std::nextafter(a, 1e9f)});
  }
  pad(inputs);
  for (const Level *level : hostLevels()) {
    auto library = compile(*level, [](KernelBuilder &b) {
      Ptr x = b.arg(0, b.f32), sine = b.arg(1, b.f32), cosine = b.arg(2, b.f32);
      b.tasks([&](Val t) {
        SinCos values = sinCos(b, (x + t * kLanes).load(kLanes));
        (sine + t * kLanes).store(b.convert(values.sin, b.f32));
        (cosine + t * kLanes).store(b.convert(values.cos, b.f32));
      });
    });
    Array<float> x(inputs), sine(inputs.size()), cosine(inputs.size());
    void *args[] = {x.data(), sine.data(), cosine.data()};
    moe_step step{1, 0, 0};
    library->symbol("function")(args, &step, 0, inputs.size() / kLanes);
    double worst = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      worst = std::max(worst, ulps(sine[i], std::sin(double(inputs[i]))));
      worst = std::max(worst, ulps(cosine[i], std::cos(double(inputs[i]))));
    }
    // Half an ulp is the rounding to f32.
    EXPECT_LE(worst, 0.5001) << level->name.str();
  }
}

TEST(Math, ByteSums) {
  // Every byte of either kind, in words of four, more of which are added than a level may keep in 16 bits; the largest
  // sums are at the ends.
  constexpr size_t tasks = 64, depth = 11, vector = 4 * kLanes;
  for (int64_t largest : {15, 127, 255}) {
    std::vector<uint8_t> a(tasks * depth * vector);
    std::vector<int8_t> w(a.size());
    std::vector<int32_t> start(tasks * kLanes);
    for (size_t i = 0; i < start.size(); ++i)
      start[i] = static_cast<int32_t>(i) - 100;
    std::vector<int32_t> expected = start;
    for (size_t i = 0; i < a.size(); ++i) {
      size_t task = i / vector / depth;
      a[i] = task < 2 ? largest : i % (largest + 1);
      w[i] = task == 0 ? -128 : task == 1 ? 127 : (i * 89 + i / vector) % 256;
      expected[task * kLanes + i % vector / 4] += a[i] * w[i];
    }
    for (const Level *level : hostLevels()) {
      auto library = compile(*level, [&](KernelBuilder &b) {
        Ptr x = b.arg(0, b.i32), y = b.arg(1, b.i32), sums = b.arg(2, b.i32);
        b.tasks([&](Val task) {
          Ptr to = sums + task * kLanes;
          ByteSums sum(to.load(kLanes), largest);
          for (size_t i = 0; i < depth; ++i) {
            Val at = (task * static_cast<int64_t>(depth) + static_cast<int64_t>(i)) * kLanes;
            sum.add((x + at).load(kLanes), (y + at).load(kLanes));
          }
          to.store(sum.total());
        });
      });
      std::vector<int32_t> sums = start;
      void *args[] = {a.data(), w.data(), sums.data()};
      moe_step step{};
      library->symbol("function")(args, &step, 0, tasks);
      EXPECT_EQ(sums, expected) << level->name.str();
    }
  }
}

TEST(Math, DotBf16) {
  // Numbers of all sizes, subnormal ones and those whose products are, infinities and NaNs.
  Random random(8);
  constexpr size_t count = kLanes * 20000;
  std::vector<uint32_t> a(count), b(count), sums(count);
  for (size_t i = 0; i < count; ++i) {
    auto half = [&] {
      auto bits = static_cast<uint32_t>(random.integer(0, 0xFFFF));
      uint32_t exponent = i % 3 == 1 ? 115 + bits % 20 : i % 3 == 2 ? 50 + bits % 20 : bits >> 7 & 0xFF;
      return (bits & 0x807F) | exponent << 7;
    };
    a[i] = half() << 16 | half();
    b[i] = half() << 16 | half();
    auto exponent = static_cast<uint32_t>(i % 3 == 1 ? random.integer(110, 140) : random.integer(0, 255));
    sums[i] = static_cast<uint32_t>(random.integer(0, 0x7FFFFF)) | exponent << 23 | (i & 1) << 31;
  }
  // With subnormal numbers for what they are, and for zeros.
  std::vector<float> expected[2];
  for (bool flushes : {false, true}) {
    auto flushed = [&](float x) { return flushes && std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; };
    auto add = [&](uint32_t x, uint32_t y, float sum) {
      return flushed(std::fma(flushed(fromBits(x)), flushed(fromBits(y)), flushed(sum)));
    };
    for (size_t i = 0; i < count; ++i)
      expected[flushes].push_back(
          add(a[i] << 16, b[i] << 16, add(a[i] & 0xFFFF0000, b[i] & 0xFFFF0000, fromBits(sums[i]))));
  }
  for (const Level *level : hostLevels()) {
    auto library = compile(*level, [&](KernelBuilder &builder) {
      Ptr x = builder.arg(0, builder.i32), y = builder.arg(1, builder.i32), z = builder.arg(2, builder.f32);
      builder.tasks([&](Val task) {
        Ptr to = z + task * kLanes;
        to.store(builder.dotBf16(to.load(kLanes), (x + task * kLanes).load(kLanes), (y + task * kLanes).load(kLanes)));
      });
    });
    std::vector<float> found(count);
    std::memcpy(found.data(), sums.data(), count * sizeof(float));
    void *args[] = {a.data(), b.data(), found.data()};
    moe_step step{};
    library->symbol("function")(args, &step, 0, static_cast<int64_t>(count / kLanes));
    size_t wrong[2] = {};
    for (bool flushes : {false, true})
      for (size_t i = 0; i < count; ++i) {
        float right = expected[flushes][i];
        wrong[flushes] += std::memcmp(&found[i], &right, 4) != 0 && !(std::isnan(found[i]) && std::isnan(right));
      }
    EXPECT_EQ(std::min(wrong[0], wrong[1]), 0U) << level->name.str();
    EXPECT_NE(wrong[0], wrong[1]) << "none is subnormal";
  }
}

} // namespace
} // namespace moec::cpu
