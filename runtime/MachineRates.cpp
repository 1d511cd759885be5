// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/MachineRates.h"

#include "runtime/CpuInfo.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <string>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

namespace moec {

uint64_t machineMemory() {
  long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(size) : 0;
}

uint64_t availableMemory() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("MemAvailable:"))
      return std::strtoull(line.c_str() + line.find(':') + 1, nullptr, 10) * 1024;
  return 0;
}

static double secondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The least time of one call of `body`, of as many as fit into `budget` seconds.
template <typename Body> static double leastSeconds(double budget, Body &&body) {
  auto start = std::chrono::steady_clock::now();
  double least = 1e9;
  do {
    auto begin = std::chrono::steady_clock::now();
    body();
    least = std::min(least, secondsSince(begin));
  } while (secondsSince(start) < budget);
  return least;
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

Result<ReadProbe> ReadProbe::create(ThreadPool &pool) {
  constexpr uint64_t mebi = 1 << 20;
  // Larger than the caches of the largest servers, and no burden on small machines.
  uint64_t bytes = std::clamp<uint64_t>(static_cast<uint64_t>(pool.threads()) * 64 * mebi, 1024 * mebi, 4096 * mebi);
  if (uint64_t memory = machineMemory())
    bytes = std::clamp(memory / 8 / mebi * mebi, mebi, bytes);
  void *address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED)
    return Error{"there are no " + std::to_string(bytes / mebi) + " MiB of memory for measuring how fast it is read"};
  madvise(address, bytes, MADV_HUGEPAGE);
  auto *words = static_cast<uint64_t *>(address);
  // Pages never written are all one page of zeros.
  constexpr uint64_t stretch = mebi / sizeof(uint64_t);
  pool.parallelFor(static_cast<int64_t>(bytes / mebi), [&](int64_t begin, int64_t end) {
    std::fill(words + begin * stretch, words + end * stretch, static_cast<uint64_t>(begin) + 1);
  });
  return ReadProbe(words, bytes);
}

ReadProbe::ReadProbe(ReadProbe &&other) noexcept : words(std::exchange(other.words, nullptr)), bytes(other.bytes) {}

ReadProbe::~ReadProbe() {
  if (words)
    munmap(words, bytes);
}

/// Reads `bytes`, a multiple of `stride`, with the widest loads of the machine: narrower ones see less of the memory's
/// rate. Assembly, as nobody needs what is read.
static constexpr uint64_t stride = 512;
static void readAll(const uint64_t *words, uint64_t bytes) {
#if defined(__x86_64__)
#define MOEC_LOADS(STEP)                                                                                               \
  asm volatile("1:\n\t" STEP "\n\taddq $512, %0\n\tcmpq %1, %0\n\tjb 1b\n\tvzeroupper"                                 \
               : "+r"(words)                                                                                           \
               : "r"(words + bytes / sizeof(uint64_t))                                                                 \
               : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7")
  if (bytes == 0)
    return;
  static const CpuLevel level = machineCpuLevel().value_or(CpuLevel::V1);
  if (level >= CpuLevel::V4) {
    MOEC_LOADS(".irp r,0,1,2,3,4,5,6,7\n\tvmovdqu64 \\r*64(%0), %%zmm\\r\n\t.endr");
    return;
  }
  if (level >= CpuLevel::V3) {
    MOEC_LOADS(".irp r,0,1,2,3,4,5,6,7\n\tvmovdqu \\r*64(%0), %%ymm\\r\n\tvmovdqu \\r*64+32(%0), %%ymm\\r\n\t.endr");
    return;
  }
#undef MOEC_LOADS
#elif defined(__aarch64__)
  if (bytes == 0)
    return;
  asm volatile("1:\n\t.irp at,0,64,128,192,256,320,384,448\n\t"
               "ldp q0, q1, [%0, #\\at]\n\tldp q2, q3, [%0, #\\at+32]\n\t.endr\n\t"
               "add %0, %0, #512\n\tcmp %0, %1\n\tb.lo 1b"
               : "+r"(words)
               : "r"(words + bytes / sizeof(uint64_t))
               : "cc", "memory", "v0", "v1", "v2", "v3");
  return;
#endif
  // An atomic is a use that the compiler must keep.
  static std::atomic<uint64_t> sink;
  sink += std::accumulate(words, words + bytes / sizeof(uint64_t), uint64_t(0));
}

double ReadProbe::measure(ThreadPool &pool, double seconds) const {
  const uint64_t share = bytes / static_cast<uint64_t>(pool.threads()) / stride * stride;
  const double least = leastSeconds(seconds, [&] {
    pool.parallelFor(pool.threads(), [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part)
        readAll(words + part * share / sizeof(uint64_t), share);
    });
  });
  return static_cast<double>(share * static_cast<uint64_t>(pool.threads())) / least;
}

//===----------------------------------------------------------------------===//
// Arithmetic
//===----------------------------------------------------------------------===//

namespace {

/// A loop that only machines with its instruction may run.
struct Chains {
  void (*run)(int64_t rounds) = nullptr;
  int64_t count = 0;      ///< of chains, each of which one instruction of a round makes longer
  int64_t operations = 0; ///< of one instruction
};

} // namespace

#if defined(__x86_64__)
// Twelve independent chains keep two units of four or five cycles' latency busy. Assembly, so that nothing is elided or
// spilled whatever the compiler's options; all registers are zero, and no product is denormal.
#define MOEC_CHAINS(STEP)                                                                                              \
  asm volatile(".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13\n\tvxorps %%xmm\\r, %%xmm\\r, %%xmm\\r\n\t.endr\n"              \
               "1:\n\t.irp r,0,1,2,3,4,5,6,7,8,9,10,11\n\t" STEP "\n\t.endr\n\t"                                       \
               "decq %0\n\tjnz 1b\n\tvzeroupper"                                                                       \
               : "+r"(rounds)                                                                                          \
               :                                                                                                       \
               : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",       \
                 "xmm10", "xmm11", "xmm12", "xmm13")

/// Four sums of tiles of AMX, which are left zero, by a product of `columns` columns.
template <void (*Multiply)(int64_t)> static Chains tilesOf(int64_t columns) {
  // A product takes its unit 16 cycles: fewer rounds.
  constexpr int64_t shorter = 8;
  return {[](int64_t rounds) { Multiply(rounds / shorter); }, 4, 16 * 16 * columns * 2 / shorter};
}

#define MOEC_TILES(STEP)                                                                                               \
  asm volatile("ldtilecfg %1\n1:\n\t" STEP " %%tmm6, %%tmm4, %%tmm0\n\t" STEP " %%tmm7, %%tmm4, %%tmm1\n\t" STEP       \
               " %%tmm6, %%tmm5, %%tmm2\n\t" STEP " %%tmm7, %%tmm5, %%tmm3\n\tdecq %0\n\tjnz 1b\n\ttilerelease"        \
               : "+r"(rounds)                                                                                          \
               : "m"(kWholeTiles)                                                                                      \
               : "cc")

/// What LDTILECFG reads for eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t rowBytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);
static constexpr TileShapes kWholeTiles;

static void multiplyBf16Tiles(int64_t rounds) { MOEC_TILES("tdpbf16ps"); }
static void multiplyByteTiles(int64_t rounds) { MOEC_TILES("tdpbssd"); }

static Chains chainsOf(WorkUnit unit) {
  const CpuLevel level = machineCpuLevel().value_or(CpuLevel::V1);
  switch (unit) {
  case WorkUnit::F32:
    if (level >= CpuLevel::V4)
      return {[](int64_t rounds) { MOEC_CHAINS("vfmadd231ps %%zmm12, %%zmm13, %%zmm\\r"); }, 12, 16 * 2};
    if (level >= CpuLevel::V3)
      return {[](int64_t rounds) { MOEC_CHAINS("vfmadd231ps %%ymm12, %%ymm13, %%ymm\\r"); }, 12, 8 * 2};
    break;
  case WorkUnit::BF16:
    if (level == CpuLevel::V4Amx)
      return tilesOf<multiplyBf16Tiles>(32);
    if (level >= CpuLevel::V4 && __builtin_cpu_supports("avx512bf16"))
      return {[](int64_t rounds) { MOEC_CHAINS("vdpbf16ps %%zmm12, %%zmm13, %%zmm\\r"); }, 12, 32 * 2};
    break;
  case WorkUnit::Int8:
    if (level == CpuLevel::V4Amx)
      return tilesOf<multiplyByteTiles>(64);
    if (level >= CpuLevel::V4 && __builtin_cpu_supports("avx512vnni"))
      return {[](int64_t rounds) { MOEC_CHAINS("vpdpbusd %%zmm12, %%zmm13, %%zmm\\r"); }, 12, 64 * 2};
    if (level >= CpuLevel::V3 && __builtin_cpu_supports("avxvnni"))
      return {[](int64_t rounds) { MOEC_CHAINS("%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm\\r"); }, 12, 32 * 2};
    break;
  }
  return {};
}

#undef MOEC_TILES
#undef MOEC_CHAINS
#elif defined(__aarch64__)
// The same with twenty-four chains: large cores have four units of four cycles' latency.
#define MOEC_CHAINS(STEP)                                                                                              \
  asm volatile(                                                                                                        \
      ".arch armv8.2-a+dotprod+bf16\n\t.irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25\n\t" \
      "movi v\\r\\().2d, #0\n\t.endr\n"                                                                                \
      "1:\n\t.irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n\t" STEP "\n\t.endr\n\t"            \
      "subs %0, %0, #1\n\tb.ne 1b"                                                                                     \
      : "+r"(rounds)                                                                                                   \
      :                                                                                                                \
      : "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", \
        "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25")

static Chains chainsOf(WorkUnit unit) {
  const CpuLevel level = machineCpuLevel().value_or(CpuLevel::Arm64);
  switch (unit) {
  case WorkUnit::F32:
    return {[](int64_t rounds) { MOEC_CHAINS("fmla v\\r\\().4s, v24.4s, v25.4s"); }, 24, 4 * 2};
  case WorkUnit::BF16:
    if (level >= CpuLevel::Arm64I8mm)
      return {[](int64_t rounds) { MOEC_CHAINS("bfmmla v\\r\\().4s, v24.8h, v25.8h"); }, 24, 16 * 2};
    break;
  case WorkUnit::Int8:
    if (level >= CpuLevel::Arm64Dotprod)
      return {[](int64_t rounds) { MOEC_CHAINS("sdot v\\r\\().4s, v24.16b, v25.16b"); }, 24, 16 * 2};
    break;
  }
  return {};
}

#undef MOEC_CHAINS
#else
static Chains chainsOf(WorkUnit) { return {}; }
#endif

double measureArithmetic(ThreadPool &pool, WorkUnit unit, double seconds) {
  const Chains loop = chainsOf(unit);
  if (!loop.run)
    return 0;
  // A task is some 70 us, long beside handing it out; a pass half a millisecond, which all threads may be given at once
  // on a machine that is busy with other things, too.
  constexpr int64_t rounds = 20'000;
  const int64_t tasks = static_cast<int64_t>(pool.threads()) * 8;
  const double least = leastSeconds(seconds, [&] {
    pool.parallelFor(tasks, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        loop.run(rounds);
    });
  });
  return static_cast<double>(tasks) * rounds * static_cast<double>(loop.count * loop.operations) / least;
}

} // namespace moec
