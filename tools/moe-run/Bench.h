// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// `moe-run bench`: how fast an artifact reads prompts and decodes, beside what
/// this machine could do, measured in the same minutes.

#ifndef MOEC_TOOLS_MOERUN_BENCH_H
#define MOEC_TOOLS_MOERUN_BENCH_H

#include "runtime/Model.h"
#include "runtime/Support/Result.h"
#include "runtime/Support/Table.h"
#include "tools/moe-run/Work.h"

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace moec {

struct BenchOptions {
  std::string artifact;
  std::vector<int64_t> prompts = {512}; ///< tokens; 0: none
  std::vector<int64_t> decodes = {64};  ///< tokens of each sequence; 0: none
  std::vector<int64_t> depths = {0};    ///< tokens that are in the cache when decoding begins
  std::vector<int64_t> sequences = {1}; ///< decoded together
  std::vector<int> threads = {0};       ///< 0: the physical cores available
  std::string weights = "mapped";       ///< as `weightPlacementNames` has them
  int repetitions = 5;
  bool profile = false;
  std::string trace; ///< file to write; empty: none
};

/// Of the values of all repetitions.
struct Spread {
  double median = 0, least = 0, most = 0;

  static Spread of(std::vector<double> values);
};

/// Measured before each round of tests, with as many threads as they have. The limit is the best of all rounds: what
/// else runs on the machine can only take from it.
struct BenchLimits {
  int threads = 0;
  Spread bandwidth;                                    ///< bytes/s read from memory
  std::array<Spread, std::size(workUnits)> arithmetic; ///< operations/s; 0: the machine has no instruction for it
};

/// Launches of one kernel, or of all kernels of a kind, in one more run of a test.
struct ProfileEntry {
  std::string kind;
  int64_t launches = 0;
  double seconds = 0;
  Work work;
};

struct Profile {
  double seconds = 0;                          ///< of the run as a whole
  std::map<std::string, ProfileEntry> kinds;   ///< by kind
  std::map<std::string, ProfileEntry> kernels; ///< by symbol
};

struct BenchTest {
  int64_t prompt = 0;                           ///< 0: decodes
  int64_t decode = 0, depth = 0, sequences = 1; ///< of a test that decodes
  size_t limits = 0;                            ///< index into BenchReport::limits
  std::vector<double> seconds;                  ///< of each repetition
  Work work;                                    ///< of one repetition
  Profile profile;                              ///< empty unless asked for

  /// As llama-bench calls them: "pp512", "tg64@d4096"; of several sequences "tg64x8".
  std::string name() const;
  int64_t tokens() const { return prompt > 0 ? prompt : decode * sequences; }
  Spread rate() const; ///< tokens/s
};

struct BenchReport {
  ModelInfo model;
  std::string artifact, device; ///< "x86-64-v4"
  std::string cpu;
  int cores = 0;
  int repetitions = 0;
  bool hasWork = false; ///< whether `BenchTest::work` is known
  bool hasProfile = false;
  std::vector<BenchLimits> limits;
  std::vector<BenchTest> tests;

  /// Seconds that reading and computing `work` would take at least; 0 if a rate is not known.
  double leastSeconds(const Work &work, const BenchLimits &limits) const;
  double arithmeticSeconds(const Work &work, const BenchLimits &limits) const;
};

/// One repetition of each test that is not timed, then repetitions in turn (A B C A B C). Tokens are random, the same
/// in each repetition and each run.
Result<BenchReport> runBench(const BenchOptions &options);

std::string toJson(const BenchReport &report);
std::string toText(const BenchReport &report, TableStyle style);

} // namespace moec

#endif // MOEC_TOOLS_MOERUN_BENCH_H
