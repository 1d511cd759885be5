// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/CpuInfo.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

#include <sched.h>

namespace moec {

std::string_view toString(CpuLevel level) {
  switch (level) {
  case CpuLevel::V1:
    return "x86-64";
  case CpuLevel::V2:
    return "x86-64-v2";
  case CpuLevel::V3:
    return "x86-64-v3";
  case CpuLevel::V4:
    return "x86-64-v4";
  case CpuLevel::V4Vnni:
    return "x86-64-v4-vnni";
  }
  return "?";
}

std::optional<CpuLevel> cpuLevelFromString(std::string_view name) {
  constexpr std::string_view family = "x86-64-";
  for (CpuLevel level : {CpuLevel::V1, CpuLevel::V2, CpuLevel::V3, CpuLevel::V4, CpuLevel::V4Vnni}) {
    std::string_view full = toString(level);
    if (name == full || name == (full.size() > family.size() ? full.substr(family.size()) : "v1"))
      return level;
  }
  return std::nullopt;
}

std::optional<CpuLevel> machineCpuLevel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) {
    bool dots = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    return dots ? CpuLevel::V4Vnni : CpuLevel::V4;
  }
  if (__builtin_cpu_supports("x86-64-v3"))
    return CpuLevel::V3;
  if (__builtin_cpu_supports("x86-64-v2"))
    return CpuLevel::V2;
  return CpuLevel::V1;
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
    return Error{what + ": has code for " + present + ", but this machine is not x86-64"};
  std::string highest(toString(*machine));
  if (!forced.empty()) {
    std::optional<CpuLevel> wanted = cpuLevelFromString(forced);
    if (!wanted)
      return Error{"MOEC_CPU is '" + std::string(forced) +
                   "', expected one of v1, v2, v3, v4, v4-vnni, x86-64, x86-64-v2, "
                   "x86-64-v3, x86-64-v4, x86-64-v4-vnni"};
    auto found = std::find(levels.begin(), levels.end(), *wanted);
    if (found == levels.end())
      return Error{what + ": MOEC_CPU asks for " + std::string(toString(*wanted)) + ", but there is code for " +
                   present + " only"};
    if (*wanted > *machine)
      return Error{what + ": MOEC_CPU asks for " + std::string(toString(*wanted)) + ", but this machine supports " +
                   highest + " at most"};
    return found - levels.begin();
  }
  for (size_t i = 0; i < levels.size(); ++i)
    if (levels[i] <= *machine)
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
  // A mask of fixed size fails on machines with more CPUs than it has bits.
  cpu_set_t *mask = nullptr;
  size_t bits = 1024, bytes = 0;
  for (; bits <= 1u << 20; bits *= 2) {
    mask = CPU_ALLOC(bits);
    bytes = CPU_ALLOC_SIZE(bits);
    if (!mask)
      return 1;
    CPU_ZERO_S(bytes, mask);
    if (sched_getaffinity(0, bytes, mask) == 0)
      break;
    CPU_FREE(mask);
    mask = nullptr;
  }
  if (!mask)
    return 1;
  std::set<std::string> cores;
  for (size_t cpu = 0; cpu < bits; ++cpu) {
    if (!CPU_ISSET_S(cpu, bytes, mask))
      continue;
    std::ifstream siblings("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string core;
    if (!std::getline(siblings, core) || core.empty())
      core = "cpu" + std::to_string(cpu);
    cores.insert(core);
  }
  CPU_FREE(mask);
  int count = std::max<int>(1, cores.size());
  if (double quota = quotaOfControlGroup(); quota > 0)
    count = std::min(count, std::max(1, static_cast<int>(std::ceil(quota))));
  return count;
}

} // namespace moec
