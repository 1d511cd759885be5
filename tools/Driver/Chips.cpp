// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Chips.h"

#include "runtime/CpuInfo.h"
#include "runtime/MachineRates.h"
#include "runtime/ThreadPool.h"

#include <algorithm>
#include <cctype>
#include <vector>

using namespace moec;

//===----------------------------------------------------------------------===//
// The table
//===----------------------------------------------------------------------===//

namespace {

constexpr double tera = 1e12, giga = 1e9;
constexpr uint64_t gigabyte = 1'000'000'000;

/// A CPU socket: peaks follow from channels, cores and clock. `flops` are those of f32 in one core and cycle.
Chip socket(std::string name, std::string description, int channels, double transfers, int cores, double flops,
            double hertz, uint64_t memory) {
  Chip chip;
  chip.name = std::move(name);
  chip.description = std::move(description);
  chip.bandwidth = channels * transfers * 8; // a channel is 8 bytes wide
  chip.bf16 = cores * flops * hertz;
  chip.memory = memory;
  chip.isCpu = true;
  return chip;
}

} // namespace

std::span<const Chip> moec::chips() {
  static const std::vector<Chip> table = {
      // NVIDIA A100 datasheet (80 GB SXM): dense figures.
      {"A100", "NVIDIA A100 SXM 80 GB", 2.039 * tera, 312 * tera, 0, 624 * tera, 80 * gigabyte},
      // NVIDIA H100 datasheet (SXM): half of the figures printed "with sparsity".
      {"H100", "NVIDIA H100 SXM 80 GB", 3.35 * tera, 989 * tera, 1979 * tera, 1979 * tera, 80 * gigabyte},
      // The H100's processor with slower links between devices (DeepSeek-V3, arXiv:2412.19437, sec. 3.1).
      {"H800", "NVIDIA H800 SXM 80 GB", 3.35 * tera, 989 * tera, 1979 * tera, 1979 * tera, 80 * gigabyte},
      // NVIDIA H200 datasheet (SXM): the H100's processor with more and faster memory.
      {"H200", "NVIDIA H200 SXM 141 GB", 4.8 * tera, 989 * tera, 1979 * tera, 1979 * tera, 141 * gigabyte},
      // No data sheet of the 910B2: 64 GB of HBM at 1.6 TB/s are what is reported, the rates are computed from 24 cube
      // cores of 16x16x16 multiply-adds at 1.8 GHz, twice as many in int8, no FP8.
      {"910B", "Ascend 910B2 64 GB (rates computed, not published)", 1.6 * tera, 353.9 * tera, 0, 707.8 * tera,
       64 * gigabyte},
      // No data sheet: 1,504 int8 TOPS of two dies together follow from arXiv:2506.12708's tokens/s per TFLOPS; no FP8.
      {"910C", "Ascend 910C 128 GB, two dies", 3.2 * tera, 752 * tera, 0, 1504 * tera, 128 * gigabyte},
      // EPYC: AMD's data sheets for channels, transfers, cores and base clock (the 9755's 6,400 MT/s are for chosen
      // boards only); one DIMM of 64 GB in each channel is assumed.
      // Zen 3 and 4 finish two 256-bit f32 FMAs a cycle, Zen 5 two of 512 bits.
      socket("EPYC-7003", "AMD EPYC 7763 socket, 64 cores", 8, 3.2 * giga, 64, 32, 2.45 * giga, 512 * gigabyte),
      socket("EPYC-9004", "AMD EPYC 9654 socket, 96 cores", 12, 4.8 * giga, 96, 32, 2.4 * giga, 768 * gigabyte),
      socket("EPYC-9005", "AMD EPYC 9755 socket, 128 cores", 12, 6.0 * giga, 128, 64, 2.7 * giga, 768 * gigabyte),
  };
  return table;
}

const Chip *moec::findChip(std::string_view name) {
  auto same = [](char a, char b) {
    return std::toupper(static_cast<unsigned char>(a)) == std::toupper(static_cast<unsigned char>(b));
  };
  for (const Chip &chip : chips())
    if (std::ranges::equal(chip.name, name, same))
      return &chip;
  return nullptr;
}

std::string moec::chipNames() {
  std::string names;
  for (const Chip &chip : chips())
    names += (names.empty() ? "" : ", ") + chip.name;
  return names;
}

//===----------------------------------------------------------------------===//
// This machine
//===----------------------------------------------------------------------===//

Chip moec::thisMachine() {
  Chip chip;
  chip.name = "cpu";
  chip.description = "this machine, " + std::to_string(availableCores()) + " cores";
  chip.memory = machineMemory();
  chip.isCpu = true;
  return chip;
}

Result<Chip> moec::measureThisMachine() {
  Chip chip = thisMachine();
  MOEC_TRY(auto pool, ThreadPool::create(std::clamp(availableCores(), 1, ThreadPool::maxThreads)));
  MOEC_TRY(ReadProbe memory, ReadProbe::create(*pool));
  chip.bandwidth = memory.measure(*pool, 0.4);
  chip.bf16 = measureArithmetic(*pool, WorkUnit::F32, 0.3);
  if (chip.bf16 == 0)
    return Error{"this machine has no AVX2, but moec makes code for x86-64-v3 and better; give a chip with --target"};
  return chip;
}
