// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What the machine under us can do and how many cores of it are ours.

#ifndef MOEC_RUNTIME_CPUINFO_H
#define MOEC_RUNTIME_CPUINFO_H

#include "runtime/Support/Result.h"

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace moec {

/// The micro-architecture levels of the x86-64 psABI, least first, and above them
/// what has AVX512_VNNI and AVX512_BF16 as well.
enum class CpuLevel { V1, V2, V3, V4, V4Vnni };

/// "x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4-vnni"; the short
/// forms "v1" to "v4-vnni" are understood as well.
std::string_view toString(CpuLevel level);
std::optional<CpuLevel> cpuLevelFromString(std::string_view name);

/// The highest level that this CPU and its operating system support, asked of
/// CPUID and XGETBV; nothing on another architecture.
std::optional<CpuLevel> machineCpuLevel();

/// Picks the entry of `levels` (a manifest's, best first) to run on `machine`.
/// `forced` is the value of MOEC_CPU, empty if unset: its level must be in
/// `levels` and supported. `what` names the artifact in the sentence of failure.
Result<size_t> chooseCpuLevel(std::span<const CpuLevel> levels, std::optional<CpuLevel> machine,
                              std::string_view forced, const std::string &what);

/// Physical cores that this process may run on: the affinity mask without
/// second hardware threads, bounded by the CPU quota of its control group.
int availableCores();

} // namespace moec

#endif // MOEC_RUNTIME_CPUINFO_H
