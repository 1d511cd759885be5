// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Support/DType.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

using namespace moec;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// A small format, said in the words of its specification and nothing else:
/// what the conversions are held against.
struct Format {
  std::string name;
  int exponentBits, mantissaBits, bias;
  bool ieee; ///< the largest exponent means infinity and NaN; otherwise only the largest code is NaN
  std::function<float(unsigned)> widen;
  std::function<unsigned(float)> narrow;

  unsigned signBit() const { return 1u << (exponentBits + mantissaBits); }
  unsigned codes() const { return signBit() << 1; }
  unsigned infinityCode() const { return ((1u << exponentBits) - 1) << mantissaBits; }
  unsigned largestFinite() const { return ieee ? infinityCode() - 1 : signBit() - 2; }

  /// The magnitude of code `c` (without sign) as if no code were special.
  double magnitude(unsigned c) const {
    unsigned mantissa = c & ((1u << mantissaBits) - 1), exponent = c >> mantissaBits;
    if (exponent == 0)
      return std::ldexp(mantissa, 1 - bias - mantissaBits);
    return std::ldexp((1u << mantissaBits) + mantissa, static_cast<int>(exponent) - bias - mantissaBits);
  }

  /// Nearest code to `value`, ties to the even one, by looking at all of them.
  unsigned nearest(float value) const {
    unsigned sign = std::signbit(value) ? signBit() : 0;
    double wanted = std::fabs(static_cast<double>(value));
    // IEEE 754 sec. 4.3.1: overflow is decided as if the next power of two were representable.
    unsigned last = ieee ? infinityCode() : largestFinite();
    if (wanted >= magnitude(last))
      return sign | last;
    unsigned low = 0, high = last; // magnitude(low) <= wanted < magnitude(high)
    while (high - low > 1) {
      unsigned middle = (low + high) / 2;
      (magnitude(middle) <= wanted ? low : high) = middle;
    }
    double below = wanted - magnitude(low), above = magnitude(high) - wanted;
    bool up = below > above || (below == above && low % 2 == 1);
    return sign | (up ? high : low);
  }
};

std::vector<Format> formats() {
  return {
      {"bf16", 8, 7, 127, true, [](unsigned c) { return bf16ToFloat(static_cast<uint16_t>(c)); },
       [](float f) -> unsigned { return floatToBf16(f); }},
      {"f16", 5, 10, 15, true, [](unsigned c) { return f16ToFloat(static_cast<uint16_t>(c)); },
       [](float f) -> unsigned { return floatToF16(f); }},
      {"f8e4m3", 4, 3, 7, false, [](unsigned c) { return f8e4m3ToFloat(static_cast<uint8_t>(c)); },
       [](float f) -> unsigned { return floatToF8e4m3(f); }},
  };
}

class SmallFloat : public testing::TestWithParam<Format> {};

/// A readable parameter in failures.
void PrintTo(const Format &format, std::ostream *out) { *out << format.name; }

TEST_P(SmallFloat, EveryCodeWidensExactlyAndComesBack) {
  const Format &format = GetParam();
  for (unsigned code = 0; code < format.codes(); ++code) {
    unsigned c = code & ~format.signBit();
    bool negative = c != code;
    float wide = format.widen(code);
    if (c > format.largestFinite() && !(format.ieee && c == format.infinityCode())) {
      ASSERT_TRUE(std::isnan(wide)) << code;
      unsigned back = format.narrow(wide);
      ASSERT_TRUE(std::isnan(format.widen(back))) << code;
      ASSERT_EQ(back & format.signBit(), code & format.signBit()) << code;
      continue;
    }
    double expected = format.ieee && c == format.infinityCode() ? infinity : format.magnitude(c);
    ASSERT_EQ(static_cast<double>(wide), negative ? -expected : expected) << code;
    ASSERT_EQ(std::signbit(wide), negative) << code;
    ASSERT_EQ(format.narrow(wide), code);
  }
}

TEST_P(SmallFloat, RoundsToNearestEvenBetweenAllNeighbours) {
  const Format &format = GetParam();
  auto check = [&](float value) {
    ASSERT_EQ(format.narrow(value), format.nearest(value)) << std::hexfloat << value;
    ASSERT_EQ(format.narrow(-value), format.nearest(-value)) << std::hexfloat << -value;
  };
  for (unsigned code = 0; code <= format.largestFinite(); ++code) {
    double low = format.magnitude(code), high = format.magnitude(code + 1);
    // Exact in f32: one bit more than the format has. (For the last bf16 code too.)
    auto middle = static_cast<float>(low / 2 + high / 2);
    ASSERT_EQ(static_cast<double>(middle), low / 2 + high / 2);
    for (float value : {static_cast<float>(low), std::nextafter(static_cast<float>(low), infinity),
                        std::nextafter(middle, 0.0f), middle, std::nextafter(middle, infinity)})
      ASSERT_NO_FATAL_FAILURE(check(value));
  }
}

TEST_P(SmallFloat, RandomBitsAgreeWithTheRule) {
  const Format &format = GetParam();
  const unsigned seed = 20261123;
  std::mt19937 random(seed);
  for (int i = 0; i < 300000; ++i) {
    auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    unsigned code = format.narrow(value);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(format.widen(code))) << "seed " << seed;
      ASSERT_EQ((code & format.signBit()) != 0, std::signbit(value)) << "seed " << seed;
    } else {
      ASSERT_EQ(code, format.nearest(value)) << std::hexfloat << value << " seed " << seed;
    }
  }
}

TEST_P(SmallFloat, EndsOfTheRange) {
  const Format &format = GetParam();
  unsigned top = format.ieee ? format.infinityCode() : format.largestFinite();
  for (float value : {infinity, std::numeric_limits<float>::max()}) {
    EXPECT_EQ(format.narrow(value), top);
    EXPECT_EQ(format.narrow(-value), top | format.signBit());
  }
  if (format.name != "bf16") { // whose subnormals are those of f32
    EXPECT_EQ(format.narrow(std::numeric_limits<float>::denorm_min()), 0u);
    EXPECT_EQ(format.narrow(-std::numeric_limits<float>::denorm_min()), format.signBit());
  }
  // The payload of this NaN lies only in bits that narrowing cuts off.
  EXPECT_TRUE(std::isnan(format.widen(format.narrow(std::bit_cast<float>(0x7f800001u)))));
}

INSTANTIATE_TEST_SUITE_P(DType, SmallFloat, testing::ValuesIn(formats()),
                         [](const auto &info) { return info.param.name; });

TEST(DType, F8E8M0IsAPowerOfTwoOrNan) {
  for (int code = 0; code < 255; ++code)
    ASSERT_EQ(static_cast<double>(f8e8m0ToFloat(static_cast<uint8_t>(code))), std::ldexp(1.0, code - 127)) << code;
  EXPECT_TRUE(std::isnan(f8e8m0ToFloat(255)));
}

TEST(DType, NamesRoundTripAndSizesAreRight) {
  const std::pair<const char *, int64_t> all[] = {{"F64", 8},     {"F32", 4},     {"F16", 2}, {"BF16", 2},
                                                  {"F8_E4M3", 1}, {"F8_E8M0", 1}, {"I64", 8}, {"I32", 4},
                                                  {"I16", 2},     {"I8", 1},      {"U8", 1},  {"BOOL", 1}};
  for (auto [name, bytes] : all) {
    auto type = dtypeFromString(name);
    ASSERT_TRUE(type.has_value()) << name;
    EXPECT_EQ(toString(*type), name);
    EXPECT_EQ(byteSize(*type), bytes) << name;
  }
  for (const char *name : {"", "f32", "F32 ", "F8_E5M2", "U64", "BF1"})
    EXPECT_FALSE(dtypeFromString(name).has_value()) << name;
}

} // namespace
