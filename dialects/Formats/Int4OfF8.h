// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// How `packInt4` quantizes FP8: codes become codes by a table.

#ifndef MOEC_DIALECTS_FORMATS_INT4OFF8_H
#define MOEC_DIALECTS_FORMATS_INT4OFF8_H

#include "dialects/Formats/Int4.h"

namespace moec {

/// How far the int4 codes of a group are from 8, by its FP8 codes.
///
/// A group's int4 scale is an eighth of its extreme, rounded. Without that rounding the int4 code of a weight would be
/// 8 times a quotient of two FP8 magnitudes, rounded: `8 (8 + a) / ((8 + m) 2^e)` with mantissas a, m, where a
/// difference of 48 magnitudes or more gives 0. Unless it lies in the middle of two integers this is at least a 240th
/// of it away from there, while rounding a scale to f16 or bf16 moves it by at most a 512th. So rounding decides
/// nothing but where those in the middle go: up where it made the scale smaller, down where it made it larger, by far
/// more than what f32 rounds on the way. Where it did nothing and f32 is exact too, since FP8's scale is a power of
/// two, it is the rounded inverse of the scale that decides, or even numbers are taken.
struct Int4OfF8 {
  enum Ties { Up, Down, ByInverse };
  static constexpr int kTies = 3, kMantissas = 8;
  static constexpr int kEntries = 48;            ///< magnitudes below which the distance is 0
  static constexpr int kSmallest = kEntries + 8; ///< of the extremes: no magnitude within reach is subnormal

  /// By mantissa of the extreme, and magnitude, from `kEntries - 1` below that of the extreme.
  alignas(64) uint8_t distances[kTies][kMantissas][kEntries] = {};

  constexpr Int4OfF8() {
    for (int ties = 0; ties < kTies; ++ties)
      for (int m = 0; m < kMantissas; ++m)
        for (int i = 1; i < kEntries; ++i) // any multiple of 8, and m, is the extreme's magnitude
          distances[ties][m][i] = static_cast<uint8_t>(distanceOf(ties, m, 64 + m - (kEntries - 1 - i)));
  }

private:
  static constexpr int distanceOf(int ties, int m, int magnitude) {
    // twice 8 times the quotient is numerator / denominator.
    int numerator = 16 * (8 + magnitude % 8), denominator = (8 + m) << (8 - magnitude / 8);
    int floor = numerator / denominator;
    if (floor % 2 == 0 || numerator % denominator != 0)
      return (floor + 1) / 2;
    float inverse = 1.0f / static_cast<float>(8 + m);
    double product = static_cast<double>(inverse) * (8 + m);
    bool toEven = product == 1.0;
    bool up = ties == Up || (ties == ByInverse && (toEven ? (floor + 1) / 2 % 2 == 0 : product > 1.0));
    return (floor + (up ? 1 : -1)) / 2;
  }
};

inline constexpr Int4OfF8 kInt4OfF8;

/// `packInt4` for rows of F8E4M3.
bool packInt4OfF8(const Int4Panel &panel, const StoredRows &rows, int64_t cols, int64_t lane, std::byte *out,
                  const std::byte *next);

} // namespace moec

#endif // MOEC_DIALECTS_FORMATS_INT4OFF8_H
