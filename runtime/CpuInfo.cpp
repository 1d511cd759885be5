// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/CpuInfo.h"

#include "runtime/Topology.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <sstream>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace moec {

namespace {

enum class Architecture { X86, Arm };

struct LevelName {
  CpuLevel level;
  Architecture architecture;
  std::string_view full, brief;
};

constexpr std::array levelNames = {
    LevelName{CpuLevel::V1, Architecture::X86, "x86-64", "v1"},
    LevelName{CpuLevel::V2, Architecture::X86, "x86-64-v2", "v2"},
    LevelName{CpuLevel::V3, Architecture::X86, "x86-64-v3", "v3"},
    LevelName{CpuLevel::V3Vnni, Architecture::X86, "x86-64-v3-vnni", "v3-vnni"},
    LevelName{CpuLevel::V4, Architecture::X86, "x86-64-v4", "v4"},
    LevelName{CpuLevel::V4Vnni, Architecture::X86, "x86-64-v4-vnni", "v4-vnni"},
    LevelName{CpuLevel::V4Amx, Architecture::X86, "x86-64-v4-amx", "v4-amx"},
    LevelName{CpuLevel::Arm64, Architecture::Arm, "aarch64", "aarch64"},
    LevelName{CpuLevel::Arm64Dotprod, Architecture::Arm, "aarch64-dotprod", "dotprod"},
    LevelName{CpuLevel::Arm64I8mm, Architecture::Arm, "aarch64-i8mm", "i8mm"},
};

const LevelName &nameOf(CpuLevel level) { return *std::ranges::find(levelNames, level, &LevelName::level); }

} // namespace

std::string_view toString(CpuLevel level) { return nameOf(level).full; }

std::optional<CpuLevel> cpuLevelFromString(std::string_view name) {
  for (const LevelName &known : levelNames)
    if (name == known.full || name == known.brief)
      return known.level;
  return std::nullopt;
}

std::string cpuLevelNames() {
  std::string names;
  for (const LevelName &known : levelNames)
    names += (names.empty() ? "" : ", ") + std::string(known.full);
  return names;
}

bool runsOn(CpuLevel code, CpuLevel machine) {
  // AVX-512 does not bring AVX_VNNI along.
  if (code == CpuLevel::V3Vnni)
    return machine == code;
  return nameOf(code).architecture == nameOf(machine).architecture && code <= machine;
}

#if defined(__x86_64__)
/// Whether there is AMX for bytes and bf16, and the kernel lets this process, all threads of it, use it. It gives leave
/// for good.
static bool mayUseTiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25, all = bf16 | tile | int8;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & all) != all)
    return false;
  constexpr long requestPermission = 0x1023, tileData = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, requestPermission, tileData) == 0;
}
#endif

std::optional<CpuLevel> machineCpuLevel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) {
    bool dots = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    if (!dots)
      return CpuLevel::V4;
    return mayUseTiles() ? CpuLevel::V4Amx : CpuLevel::V4Vnni;
  }
  if (__builtin_cpu_supports("x86-64-v3"))
    return __builtin_cpu_supports("avxvnni") ? CpuLevel::V3Vnni : CpuLevel::V3;
  if (__builtin_cpu_supports("x86-64-v2"))
    return CpuLevel::V2;
  return CpuLevel::V1;
#elif defined(__aarch64__)
  // Bits of the kernel's interface, which older headers lack.
  constexpr unsigned long dotProducts = 1ul << 20;            // HWCAP_ASIMDDP
  constexpr unsigned long i8mm = 1ul << 13, bf16 = 1ul << 14; // HWCAP2_I8MM, HWCAP2_BF16
  if (!(getauxval(AT_HWCAP) & dotProducts))
    return CpuLevel::Arm64;
  bool matrices = (getauxval(AT_HWCAP2) & (i8mm | bf16)) == (i8mm | bf16);
  return matrices ? CpuLevel::Arm64I8mm : CpuLevel::Arm64Dotprod;
#else
  return std::nullopt;
#endif
}

Result<size_t> chooseCpuLevel(std::span<const CpuLevel> levels, std::optional<CpuLevel> machine,
                              std::string_view forced, const std::string &what) {
  std::string present;
  for (CpuLevel level : levels) {
    present += present.empty() ? "" : ", ";
    present += toString(level);
  }
  if (!machine)
    return Error{what + ": has code for " + present + ", but this machine is neither x86-64 nor aarch64"};
  std::string highest(toString(*machine));
  if (!forced.empty()) {
    std::optional<CpuLevel> wanted = cpuLevelFromString(forced);
    if (!wanted)
      return Error{"MOEC_CPU is '" + std::string(forced) + "', expected one of " + cpuLevelNames() +
                   ", or v1 to v4-amx, dotprod or i8mm"};
    auto found = std::find(levels.begin(), levels.end(), *wanted);
    if (found == levels.end())
      return Error{what + ": MOEC_CPU asks for " + std::string(toString(*wanted)) + ", but there is code for " +
                   present + " only"};
    if (!runsOn(*wanted, *machine))
      return Error{what + ": MOEC_CPU asks for " + std::string(toString(*wanted)) + ", but this machine supports " +
                   highest + " at most"};
    return found - levels.begin();
  }
  for (size_t i = 0; i < levels.size(); ++i)
    if (runsOn(levels[i], *machine))
      return i;
  return Error{what + ": has code for " + present + ", but this machine supports " + highest + " at most"};
}

/// The CPU quota of the innermost version 2 control group that sets one, in cores; 0 if none does.
static double quotaOfControlGroup() {
  std::ifstream self("/proc/self/cgroup");
  std::string line, group = "/";
  while (std::getline(self, line))
    if (line.rfind("0::", 0) == 0)
      group = line.substr(3);
  double least = 0;
  for (;;) {
    std::ifstream file("/sys/fs/cgroup" + group + "/cpu.max");
    std::string quota;
    double period = 0;
    if (file >> quota >> period && quota != "max" && period > 0) {
      double cores = std::strtod(quota.c_str(), nullptr) / period;
      if (cores > 0)
        least = least == 0 ? cores : std::min(least, cores);
    }
    if (group.empty() || group == "/")
      return least;
    group.erase(group.rfind('/'));
  }
}

int availableCores() {
  int count = Topology::machine().cores();
  if (double quota = quotaOfControlGroup(); quota > 0)
    count = std::min(count, std::max(1, static_cast<int>(std::ceil(quota))));
  return count;
}

} // namespace moec
