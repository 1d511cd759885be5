// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Packed int4, on every vector width that this machine has: the same bits as the definition gives.

#include "dialects/Formats/Int4.h"

#include "EachTarget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

using namespace moec;

namespace {

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

TEST(Int4, OfEveryKindOfValue) {
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

TEST(Int4, FindsWhatHasNoScale) {
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
