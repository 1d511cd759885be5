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
#include <utility>
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
          ASSERT_TRUE(packInt4(panel, StoredRows::of(values.data(), cols), cols, lane, out.data()));
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
        EXPECT_FALSE(packInt4({}, StoredRows::of(values.data(), 64), 64, 0, out.data())) << bad << " at " << place;
      }
    std::vector<float> largest(4 * 32, 8 * 65504.0f);
    std::vector<std::byte> out(Int4Panel().groupBytes());
    EXPECT_TRUE(packInt4({}, StoredRows::of(largest.data(), 32), 32, 0, out.data()));
  });
}

/// Four rows of FP8 at an odd address, and what they stand for.
struct F8Rows {
  StoredRows stored;
  std::vector<std::byte> codes;
  int64_t cols;

  F8Rows(int64_t cols, int64_t scaleCols, int64_t first) : codes(1 + kInt4Rows * (cols + 5)), cols(cols) {
    stored.type = DType::F8E4M3;
    stored.data = &codes[1];
    stored.stride = cols + 5;
    stored.scaleCols = scaleCols;
    stored.first = first;
  }
  std::byte &at(int64_t row, int64_t col) { return codes[1 + row * stored.stride + col]; }
  std::vector<float> values() {
    std::vector<float> values(kInt4Rows * cols);
    for (int64_t r = 0; r < kInt4Rows; ++r)
      scaleF8E4M3(&at(r, 0), stored.scales.data(), stored.scaleCols, stored.first, &values[r * cols], cols);
    return values;
  }
};

/// Every FP8 code in groups whose extremes have the magnitude `largest` or the next one, and either sign.
void checkF8Extreme(DType type, float scale, int largest) {
  constexpr int64_t cols = 9 * 32;
  F8Rows rows(cols, cols, 0);
  rows.stored.scales[0] = scale;
  for (int64_t r = 0; r < kInt4Rows; ++r) {
    // A negative extreme and all that is no larger, or a positive one and all that is smaller.
    int magnitude = std::min<int>(largest + r / 2, 126), sign = r % 2 ? 0x80 : 0, code = 0;
    for (int64_t c = 0; c < cols; ++c) {
      if (c % 32 == 7) {
        rows.at(r, c) = static_cast<std::byte>(magnitude | sign);
        continue;
      }
      rows.at(r, c) = static_cast<std::byte>(code / 2 | (code % 2 ? 0x80 : 0));
      code = (code + 1) % (2 * magnitude + (sign ? 2 : 1));
    }
  }
  Int4Panel panel{8, 32, type};
  std::vector<std::byte> expected = packed(panel, rows.values(), cols, 4);
  onEachTarget([&] {
    std::vector<std::byte> out(expected.size(), std::byte(0xEE));
    ASSERT_TRUE(packInt4(panel, rows.stored, cols, 4, out.data()));
    ASSERT_EQ(out, expected) << "scale " << scale << ", largest magnitude " << largest;
  });
}

TEST(Int4, OfEveryF8CodeBelowEveryExtreme) {
  // Powers of two, which int4 scales may share or not; one with few bits; any.
  std::vector<float> scales = {1, 0x1p-12f, 0x1p-20f, 0x1p-110f, 0.75f, 2e-4f, 3e-7f};
  std::mt19937 random(5);
  for (int i = 0; i < 24; ++i)
    scales.push_back(std::exp2(std::uniform_real_distribution<float>(-16, 4)(random)));
  for (DType type : {DType::F16, DType::BF16})
    for (float scale : scales)
      for (int largest = 0; largest < 127; largest += 2)
        checkF8Extreme(type, scale, largest);
}

TEST(Int4, OfF8WhereRoundingAScaleIsNextToNothing) {
  std::mt19937 random(8);
  for (DType type : {DType::F16, DType::BF16})
    for (int mantissa = 8; mantissa < 16; ++mantissa)
      for (int i = 0; i < 64; ++i) {
        // The int4 scale of this extreme is that of 1.x in few bits, or a neighbour of it in f32.
        auto scale = (128.0f + static_cast<float>(random() % 128)) / 128.0f * 0x1p-8f / static_cast<float>(mantissa);
        checkF8Extreme(type, i % 2 ? std::nextafter(scale, 1.0f) : scale, 96 + mantissa - 8);
      }
}

TEST(Int4, OfF8InGroupsAndBlocksOfAnySize) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  for (int64_t group : {32, 64, 96, 128})
    for (int64_t scaleGroups : {1, 2, 5})
      for (int64_t cols : {group, 7 * group}) {
        F8Rows rows(cols, scaleGroups * group, (scaleGroups - 1) * group);
        for (std::byte &code : rows.codes)
          code = static_cast<std::byte>(floatToF8e4m3(100 * normal(random)));
        for (int64_t i = 0; i < 8; ++i)
          rows.stored.scales[i] = 2e-4f * std::exp(normal(random));
        Int4Panel panel{32, group, DType::F16};
        ASSERT_TRUE(canPackInt4(panel, rows.stored));
        std::vector<std::byte> expected = packed(panel, rows.values(), cols, 12);
        onEachTarget([&] {
          std::vector<std::byte> out(expected.size(), std::byte(0xEE));
          ASSERT_TRUE(packInt4(panel, rows.stored, cols, 12, out.data(), rows.stored.data));
          EXPECT_EQ(out, expected) << "groups of " << group << ", scales for " << scaleGroups;
        });
      }
  F8Rows rows(64, 48, 0);
  EXPECT_FALSE(canPackInt4({}, rows.stored));
}

TEST(Int4, OfF8FindsWhatHasNoScale) {
  onEachTarget([] {
    F8Rows rows(256, 128, 0);
    std::ranges::fill(rows.codes, std::byte(0x70));
    rows.stored.scales[0] = rows.stored.scales[1] = 1;
    std::vector<std::byte> out(8 * Int4Panel().groupBytes());
    EXPECT_TRUE(packInt4({}, rows.stored, 256, 0, out.data()));
    for (int64_t col : {0, 100, 255})
      for (int code : {0x7F, 0xFF}) {
        std::byte before = std::exchange(rows.at(2, col), static_cast<std::byte>(code));
        EXPECT_FALSE(packInt4({}, rows.stored, 256, 0, out.data())) << code << " at " << col;
        rows.at(2, col) = before;
      }
    rows.stored.scales[1] = 65520 * 8.0f / 128;
    EXPECT_FALSE(packInt4({}, rows.stored, 256, 0, out.data()));
    rows.stored.scales[1] = 65504 * 8.0f / 128;
    EXPECT_TRUE(packInt4({}, rows.stored, 256, 0, out.data()));
  });
}

TEST(Int4, OfBf16AsOfItsValues) {
  std::mt19937 random(7);
  constexpr int64_t cols = 3 * 64;
  std::vector<std::byte> halves(1 + kInt4Rows * 2 * cols);
  for (std::byte &half : halves)
    half = static_cast<std::byte>(random() % 2 ? 0x3C : random() % 0x70); // no infinities
  StoredRows rows;
  rows.type = DType::BF16;
  rows.data = &halves[1];
  rows.stride = 2 * cols;
  std::vector<float> values(kInt4Rows * cols);
  widen(DType::BF16, rows.data, values.data(), kInt4Rows * cols);
  Int4Panel panel{8, 64, DType::BF16};
  std::vector<std::byte> expected = packed(panel, values, cols, 0);
  onEachTarget([&] {
    std::vector<std::byte> out(expected.size(), std::byte(0xEE));
    ASSERT_TRUE(packInt4(panel, rows, cols, 0, out.data()));
    EXPECT_EQ(out, expected);
  });
}

} // namespace
