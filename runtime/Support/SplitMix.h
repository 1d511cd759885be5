// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Well mixed bits, the same everywhere: seeds, signs, drawn tokens.

#ifndef MOEC_RUNTIME_SUPPORT_SPLITMIX_H
#define MOEC_RUNTIME_SUPPORT_SPLITMIX_H

#include <cstdint>

namespace moec {

/// Added to the state for each draw.
inline constexpr uint64_t kSplitMixStep = 0x9e3779b97f4a7c15;

/// The draw of SplitMix64 from the state `x`; the next state is `x + kSplitMixStep`.
/// Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
constexpr uint64_t splitMix(uint64_t x) {
  x += kSplitMixStep;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

} // namespace moec

#endif // MOEC_RUNTIME_SUPPORT_SPLITMIX_H
