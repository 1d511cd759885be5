// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Runs of elements, on every vector width that this machine has: the same bits as one element at a time.

#include "dialects/Formats/Runs.h"

#include <hwy/targets.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

using namespace moec;

namespace {

/// Runs `check` once for each of Highway's targets, the scalar one included.
void onEachTarget(const std::function<void()> &check) {
  int64_t supported = hwy::SupportedTargets() & ~(HWY_SSSE3 | HWY_SSE4);
  int count = 0;
  for (int64_t rest = supported | HWY_SCALAR; rest != 0; rest &= rest - 1) {
    int64_t target = rest & -rest;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(hwy::TargetName(target));
    check();
    ++count;
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_GE(count, 1);
}

bool sameBits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0 || (std::isnan(a) && std::isnan(b)); }

TEST(Runs, EveryCodeIsWidened) {
  onEachTarget([] {
    // An odd start and an odd length: no alignment, and a tail.
    std::vector<std::byte> f8(1 + 256 + 7), half(1 + 2 * (65536 + 7));
    for (size_t i = 0; i < 256 + 7; ++i)
      f8[1 + i] = static_cast<std::byte>(i);
    for (size_t i = 0; i < 65536 + 7; ++i) {
      auto bits = static_cast<uint16_t>(i);
      std::memcpy(&half[1 + 2 * i], &bits, 2);
    }
    std::vector<float> out(65536 + 7);
    EXPECT_FALSE(widen(DType::F8E4M3, &f8[1], out.data(), 256 + 7));
    for (size_t i = 0; i < 256 + 7; ++i) {
      float expected = f8e4m3ToFloat(static_cast<uint8_t>(i));
      EXPECT_TRUE(std::isnan(expected) || sameBits(out[i], expected)) << i << " gives " << out[i];
    }
    for (DType type : {DType::BF16, DType::F16}) {
      EXPECT_TRUE(widen(type, &half[1], out.data(), 65536 + 7));
      for (size_t i = 0; i < out.size(); ++i) {
        auto bits = static_cast<uint16_t>(i);
        ASSERT_TRUE(sameBits(out[i], type == DType::BF16 ? bf16ToFloat(bits) : f16ToFloat(bits))) << i;
      }
    }
  });
}

TEST(Runs, ScaledCodesAreRoundedOnce) {
  onEachTarget([] {
    std::vector<std::byte> codes(45);
    std::vector<float> out(45);
    for (float factor : {1.0f, 0.3f, 1e-42f, 3e35f}) {
      for (size_t i = 0; i < codes.size(); ++i)
        codes[i] = static_cast<std::byte>(i * 37 % 127 + i % 2 * 128);
      EXPECT_TRUE(scaleF8E4M3(codes.data(), &factor, 45, 0, out.data(), 45));
      for (size_t i = 0; i < codes.size(); ++i) {
        float expected = f8e4m3ToFloat(static_cast<uint8_t>(codes[i])) * factor;
        EXPECT_TRUE(sameBits(out[i], expected)) << out[i] << " for " << expected;
      }
      for (size_t place : {44, 31, 17, 0}) {
        std::byte before = std::exchange(codes[place], std::byte(place % 2 ? 0x7F : 0xFF));
        EXPECT_FALSE(scaleF8E4M3(codes.data(), &factor, 45, 0, out.data(), 45));
        codes[place] = before;
      }
    }
    EXPECT_TRUE(scaleF8E4M3(nullptr, nullptr, 1, 0, nullptr, 0));
    // Groups that begin and end anywhere.
    const float factors[] = {0.5f, 3, 0.7f, 11, 0.01f, 9, 2};
    for (int64_t group : {7, 16, 20, 32})
      for (int64_t first : {int64_t(0), int64_t(5), group - 1}) {
        int64_t count = 40;
        EXPECT_TRUE(scaleF8E4M3(codes.data(), factors, group, first, out.data(), count));
        for (int64_t i = 0; i < count; ++i)
          EXPECT_EQ(out[i], f8e4m3ToFloat(static_cast<uint8_t>(codes[i])) * factors[(first + i) / group]) << i;
      }
  });
}

/// A panel as the definition of `#moe.quantize` and `#moe.pack_groups` has it, for four rows.
std::vector<std::byte> packed(const Int4Panel &panel, const std::vector<float> &values, int64_t cols, int64_t lane) {
  std::vector<std::byte> out(cols / panel.group * panel.groupBytes(), std::byte(0xEE));
  for (int64_t g = 0; g < cols / panel.group; ++g)
    for (int64_t r = 0; r < kInt4Rows; ++r) {
      const float *x = &values[r * cols + g * panel.group];
      float most = x[0];
      for (int64_t i = 0; i < panel.group; ++i)
        if (std::abs(x[i]) > std::abs(most) || (x[i] == -most && std::signbit(x[i])))
          most = x[i];
      bool half = panel.scale == DType::F16;
      float exact = most / -8 + 0.0f;
      uint16_t bits = half ? floatToF16(exact) : floatToBf16(exact);
      float scale = half ? f16ToFloat(bits) : bf16ToFloat(bits);
      std::memcpy(&out[g * panel.groupBytes() + 2 * (lane + r)], &bits, 2);
      float inverse = std::isfinite(1 / scale) ? 1 / scale : 0;
      for (int64_t i = 0; i < panel.group; ++i) {
        auto code = std::clamp(std::nearbyint(static_cast<double>(x[i]) * inverse), -8.0, 7.0);
        auto nibble = static_cast<std::byte>(static_cast<int>(code) + 8);
        std::byte &byte = out[g * panel.groupBytes() + 2 * panel.width +
                              ((i / 32 * 4 + i % 16 / 4) * panel.width + lane + r) * 4 + i % 4];
        byte = i % 32 < 16 ? nibble : byte | nibble << 4;
      }
    }
  return out;
}

TEST(Runs, Int4OfEveryKindOfValue) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (DType scale : {DType::F16, DType::BF16})
    for (int64_t group : {32, 64, 96, 128})
      for (int64_t width : {8, 32}) {
        Int4Panel panel{width, group, scale};
        int64_t cols = 3 * group, lane = width - kInt4Rows;
        std::vector<float> values(kInt4Rows * cols);
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = 0.02f * normal(random);
        // Zeros of both signs, ties between codes, ties of extremes, scales that are subnormal or nothing in f16.
        std::fill_n(values.begin(), group, 0.0f);
        std::fill_n(values.begin() + group, group, -0.0f);
        for (int64_t i = 0; i < group; ++i) {
          values[cols + i] = static_cast<float>(i % 33) - 16;
          values[cols + group + i] = static_cast<float>(i % 3 - 1);
          values[cols + 2 * group + i] *= 1e-5f;
          values[2 * cols + i] *= 1e-7f;
          values[2 * cols + group + i] *= 1e-30f;
          values[2 * cols + 2 * group + i] *= 1e-37f;
        }
        std::vector<std::byte> expected = packed(panel, values, cols, lane);
        onEachTarget([&] {
          std::vector<std::byte> out(expected.size(), std::byte(0xEE));
          ASSERT_TRUE(packInt4(panel, values.data(), cols, cols, lane, out.data()));
          EXPECT_EQ(out, expected) << "groups of " << group << ", width " << width;
        });
        for (int64_t r : {0, 3})
          for (int64_t c : {int64_t(0), group, cols - 1}) {
            float scaleOf = int4Value(panel, expected.data(), lane + r, c);
            EXPECT_NEAR(scaleOf, values[r * cols + c], 0.07 * 16) << "row " << r << ", column " << c;
          }
      }
}

TEST(Runs, Int4FindsWhatHasNoScale) {
  onEachTarget([] {
    for (float bad : {NAN, -NAN, INFINITY, -INFINITY, 8 * 65520.0f})
      for (size_t place : {0, 37, 4 * 64 - 1}) {
        std::vector<float> values(4 * 64, 0.5f);
        values[place] = bad;
        std::vector<std::byte> out(2 * Int4Panel().groupBytes());
        EXPECT_FALSE(packInt4({}, values.data(), 64, 64, 0, out.data())) << bad << " at " << place;
      }
    std::vector<float> largest(4 * 32, 8 * 65504.0f);
    std::vector<std::byte> out(Int4Panel().groupBytes());
    EXPECT_TRUE(packInt4({}, largest.data(), 32, 32, 0, out.data()));
  });
}

} // namespace
