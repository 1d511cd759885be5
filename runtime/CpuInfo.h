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

/// What code may ask of a CPU, of each architecture the least first: the micro-architecture levels of the x86-64
/// psABI, beside them what has AVX_VNNI, and AVX512_VNNI and AVX512_BF16, as well, and above these AMX_INT8; Armv8.0,
/// what has FEAT_DotProd, and what has FEAT_I8MM as well.
enum class CpuLevel { V1, V2, V3, V3Vnni, V4, V4Vnni, V4Amx, Arm64, Arm64Dotprod, Arm64I8mm };

/// "x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v3-vnni", "x86-64-v4", "x86-64-v4-vnni", "x86-64-v4-amx", "aarch64",
/// "aarch64-dotprod", "aarch64-i8mm"; the short forms "v1" to "v4-amx", "dotprod" and "i8mm" are understood as well.
std::string_view toString(CpuLevel level);
std::optional<CpuLevel> cpuLevelFromString(std::string_view name);
/// All names, for sentences.
std::string cpuLevelNames();

/// Whether code of a level runs on a machine of another.
bool runsOn(CpuLevel code, CpuLevel machine);

/// The highest level that this CPU and its operating system support, asked of
/// CPUID and XGETBV or of the auxiliary vector; nothing on other architectures.
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
