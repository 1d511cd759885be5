// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What a roofline needs to know of a device, from a table or measured.

#ifndef MOEC_TOOLS_DRIVER_CHIPS_H
#define MOEC_TOOLS_DRIVER_CHIPS_H

#include "runtime/Support/Result.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace moec {

/// What the multiplier is fed with.
enum class Unit : uint8_t { Bf16, Fp8, Int8 };

/// Limits of one device. Products and sums of the dense matrix units count apart: a fused multiply-add is two.
struct Chip {
  std::string name;
  std::string description;
  double bandwidth = 0; ///< bytes/s read from memory
  double bf16 = 0;      ///< operations/s; on CPUs those of f32, which is what moec's CPU kernels multiply in
  double fp8 = 0;       ///< 0: no such unit, FP8 is widened to bf16
  double int8 = 0;      ///< 0: no such unit, or none that moec uses
  uint64_t memory = 0;  ///< bytes
  bool isCpu = false;   ///< runs what `moec compile` makes

  double rate(Unit unit) const {
    double own = unit == Unit::Fp8 ? fp8 : unit == Unit::Int8 ? int8 : bf16;
    return own > 0 ? own : bf16;
  }
};

/// Published peaks of devices by name.
std::span<const Chip> chips();
/// By name, in upper or lower case; null if there is none.
const Chip *findChip(std::string_view name);
/// "A100, H100, ..."
std::string chipNames();

/// This machine as a chip without rates.
Chip thisMachine();
/// This machine, its read bandwidth and f32 rate measured with all its cores; takes about a second. Other work on the
/// machine makes the figures lower.
Result<Chip> measureThisMachine();

} // namespace moec

#endif // MOEC_TOOLS_DRIVER_CHIPS_H
