// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Runs of elements, on every vector width that this machine has: the same bits as one element at a time.

#include "dialects/Formats/Runs.h"

#include "EachTarget.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

using namespace moec;

namespace {

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

} // namespace
