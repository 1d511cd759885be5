// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/Driver/Chips.h"

#include "runtime/CpuInfo.h"
#include "runtime/Support/File.h"
#include "runtime/ThreadPool.h"
#include "tools/Driver/Text.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <sys/mman.h>
#include <unistd.h>
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

uint64_t moec::machineMemory() {
  long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(size) : 0;
}

Chip moec::thisMachine() {
  Chip chip;
  chip.name = "cpu";
  chip.description = "this machine, " + std::to_string(availableCores()) + " cores";
  chip.memory = machineMemory();
  chip.isCpu = true;
  return chip;
}

namespace {

double secondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The least time of one call of `body`, of as many as fit into `budget` seconds.
template <typename Body> double leastSeconds(double budget, Body &&body) {
  auto start = std::chrono::steady_clock::now();
  double least = 1e9;
  do {
    auto begin = std::chrono::steady_clock::now();
    body();
    least = std::min(least, secondsSince(begin));
  } while (secondsSince(start) < budget);
  return least;
}

/// Pages that are not the file cache's and not the allocator's, gone with this.
class Pages {
public:
  explicit Pages(uint64_t size) : size(size) {
    void *address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    words = address == MAP_FAILED ? nullptr : static_cast<uint64_t *>(address);
    if (words)
      madvise(words, size, MADV_HUGEPAGE);
  }
  Pages(const Pages &) = delete;
  ~Pages() {
    if (words)
      munmap(words, size);
  }

  uint64_t size;
  uint64_t *words;
};

/// The sum of `count` words, a multiple of 8. Eight sums, so that no add waits for another.
uint64_t sumWords(const uint64_t *words, uint64_t count) {
  uint64_t sums[8] = {};
  for (uint64_t i = 0; i < count; i += 8)
    for (unsigned lane = 0; lane < 8; ++lane)
      sums[lane] += words[i + lane];
  uint64_t sum = 0;
  for (uint64_t part : sums)
    sum += part;
  return sum;
}

/// Bytes/s of reading memory that no cache holds.
Result<double> measureBandwidth(ThreadPool &pool) {
  // Larger than the caches of the largest servers, and no burden on small machines.
  uint64_t share = std::clamp<uint64_t>(uint64_t(pool.threads()) * (64u << 20), 512u << 20, 4ull << 30);
  share = std::min(share, machineMemory() / 8);
  // One contiguous stretch for each thread and turn.
  constexpr uint64_t stretch = 8u << 20;
  uint64_t stretches = std::max<uint64_t>(share / stretch, 1);
  Pages pages(stretches * stretch);
  if (!pages.words)
    return Error{"no " + sizeText(stretches * stretch) + " of memory for measuring how fast it is read"};
  constexpr uint64_t words = stretch / sizeof(uint64_t);
  // Written first: pages never written are all one page of zeros.
  pool.parallelFor(static_cast<int64_t>(stretches), [&](int64_t begin, int64_t end) {
    std::fill(pages.words + begin * words, pages.words + end * words, uint64_t(begin) + 1);
  });
  // An atomic store is a use that the compiler must keep.
  std::atomic<uint64_t> sink = 0;
  double seconds = leastSeconds(0.4, [&] {
    pool.parallelFor(static_cast<int64_t>(stretches), [&](int64_t begin, int64_t end) {
      sink += sumWords(pages.words + begin * words, static_cast<uint64_t>(end - begin) * words);
    });
  });
  return static_cast<double>(pages.size) / seconds;
}

#if defined(__x86_64__)
// Twelve independent chains of multiply-adds keep two units of four cycles' latency busy. Assembly, so that nothing
// is elided or spilled whatever the compiler's options; all registers are zero, and no product is denormal.
#define MOEC_FMA_LOOP(CLEAR, STEP)                                                                                     \
  asm volatile(".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13\n\t" CLEAR "\n\t.endr\n"                                        \
               "1:\n\t.irp r,0,1,2,3,4,5,6,7,8,9,10,11\n\t" STEP "\n\t.endr\n\t"                                       \
               "decq %0\n\tjnz 1b"                                                                                     \
               : "+r"(count)                                                                                           \
               :                                                                                                       \
               : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",        \
                 "xmm11", "xmm12", "xmm13")

constexpr int64_t chains = 12;

/// Runs `count` rounds and returns the f32 operations of one.
int64_t multiplyAdd(bool wide, int64_t count) {
  if (wide)
    MOEC_FMA_LOOP("vxorps %%xmm\\r, %%xmm\\r, %%xmm\\r", "vfmadd231ps %%zmm12, %%zmm13, %%zmm\\r");
  else
    MOEC_FMA_LOOP("vxorps %%xmm\\r, %%xmm\\r, %%xmm\\r", "vfmadd231ps %%ymm12, %%ymm13, %%ymm\\r");
  asm volatile("vzeroupper" ::: "memory");
  return chains * (wide ? 16 : 8) * 2;
}

/// f32 operations/s of all threads.
Result<double> measureArithmetic(ThreadPool &pool) {
  const CpuLevel level = machineCpuLevel().value_or(CpuLevel::V1);
  if (level < CpuLevel::V3)
    return Error{"this machine is " + std::string(toString(level)) + ", but moec makes code for x86-64-v3 and better"};
  // A task is about 30 us, short beside a time slice and long beside handing it out.
  constexpr int64_t rounds = 20'000;
  const int64_t tasks = int64_t(pool.threads()) * 64;
  std::atomic<int64_t> perRound = 0;
  double seconds = leastSeconds(0.3, [&] {
    pool.parallelFor(tasks, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        perRound = multiplyAdd(level >= CpuLevel::V4, rounds);
    });
  });
  return static_cast<double>(tasks) * rounds * static_cast<double>(perRound.load()) / seconds;
}
#else
Result<double> measureArithmetic(ThreadPool &) {
  return Error{"arithmetic is measured on x86-64 only, give a chip with --target"};
}
#endif

} // namespace

Result<Chip> moec::measureThisMachine() {
  Chip chip = thisMachine();
  MOEC_TRY(auto pool, ThreadPool::create(std::clamp(availableCores(), 1, ThreadPool::maxThreads)));
  MOEC_TRY(chip.bandwidth, measureBandwidth(*pool));
  MOEC_TRY(chip.bf16, measureArithmetic(*pool));
  return chip;
}
