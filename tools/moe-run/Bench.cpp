// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "tools/moe-run/Bench.h"

#include "runtime/CpuInfo.h"
#include "runtime/MachineRates.h"
#include "runtime/Support/SplitMix.h"
#include "runtime/ThreadPool.h"
#include "tools/moe-run/Trace.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <optional>

using namespace moec;

using Clock = std::chrono::steady_clock;

Spread Spread::of(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t half = values.size() / 2;
  const double median = values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
  return {median, values.front(), values.back()};
}

std::string BenchTest::name() const {
  if (prompt > 0)
    return "pp" + std::to_string(prompt);
  return "tg" + std::to_string(decode) + (sequences > 1 ? "x" + std::to_string(sequences) : "") +
         (depth > 0 ? "@d" + std::to_string(depth) : "");
}

Spread BenchTest::rate() const {
  std::vector<double> rates;
  for (double time : seconds)
    rates.push_back(static_cast<double>(tokens()) / time);
  return Spread::of(std::move(rates));
}

double BenchReport::arithmeticSeconds(const Work &work, const BenchLimits &limits) const {
  double seconds = 0;
  for (size_t unit = 0; unit < work.flops.size(); ++unit) {
    if (work.flops[unit] == 0)
      continue;
    if (limits.arithmetic[unit].most == 0)
      return 0;
    seconds += work.flops[unit] / limits.arithmetic[unit].most;
  }
  return seconds;
}

double BenchReport::leastSeconds(const Work &work, const BenchLimits &limits) const {
  return std::max(work.bytes() / limits.bandwidth.most, arithmeticSeconds(work, limits));
}

namespace {

std::string cpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name"))
      if (const size_t colon = line.find(": "); colon != std::string::npos)
        return line.substr(colon + 2);
  return "unknown CPU";
}

/// A model at work with one number of threads, and the machine's rates with as many.
class Bench {
public:
  static Result<Bench> open(const BenchOptions &options, int threads) {
    Bench bench;
    bench.places = options.sequences.empty() ? 1 : *std::ranges::max_element(options.sequences);
    const bool decodes = std::ranges::any_of(options.decodes, [](int64_t count) { return count > 0; });
    ModelOptions model;
    model.threads = threads;
    MOEC_TRY(model.weights, weightPlacementFromString(options.weights));
    model.maxSlots = 1 + (decodes ? static_cast<int64_t>(options.depths.size()) * bench.places : 0);
    MOEC_TRY(bench.model, Model::load(options.artifact, model));
    MOEC_TRY(bench.pool, ThreadPool::create(threads));
    bench.depths = options.depths;
    return bench;
  }

  /// What `test` does, in order: pieces of a prompt, or tokens of all sequences.
  using StepHook = std::function<void(const StepContext &)>;
  Result<double> run(const BenchTest &test, const StepHook &before = nullptr) {
    const int64_t length = test.prompt > 0 ? test.prompt : test.decode;
    const int64_t width = std::min(test.prompt > 0 ? model->maxTokens() : 1, length);
    const int64_t firstSlot = test.prompt > 0 ? 0 : slotOf(test.depth);
    for (int64_t place = 0; place < test.sequences; ++place)
      MOEC_CHECK(model->truncate(firstSlot + place, test.depth));
    std::vector<float> logits(test.sequences * model->vocab());
    const Clock::time_point start = Clock::now();
    for (int64_t at = 0; at < length; at += width) {
      const int64_t count = std::min(width, length - at);
      if (before)
        before(StepContext::of(test.sequences, count, test.depth + at));
      // Of a prompt only the last token's logits are of use.
      const bool last = test.prompt == 0 || at + count == length;
      MOEC_CHECK(
          step(firstSlot, test.sequences, test.depth + at, count, last ? std::span(logits) : std::span<float>()));
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  /// Contexts for tests that decode.
  Status fill(const std::vector<BenchTest> &tests) {
    for (int64_t depth : depths) {
      int64_t sequences = 0;
      for (const BenchTest &test : tests)
        if (test.prompt == 0 && test.depth == depth)
          sequences = std::max(sequences, test.sequences);
      for (int64_t place = 0; place < sequences; ++place)
        for (int64_t at = 0; at < depth; at += model->maxTokens())
          MOEC_CHECK(step(slotOf(depth) + place, 1, at, std::min(model->maxTokens(), depth - at), {}));
    }
    return success();
  }

  void measure(const ReadProbe &memory) {
    bandwidths.push_back(memory.measure(*pool, 0.15));
    for (WorkUnit unit : workUnits)
      arithmetic[static_cast<size_t>(unit)].push_back(measureArithmetic(*pool, unit, 0.05));
  }
  BenchLimits limits() const {
    BenchLimits limits;
    limits.threads = pool->threads();
    limits.bandwidth = Spread::of(bandwidths);
    for (size_t unit = 0; unit < arithmetic.size(); ++unit)
      limits.arithmetic[unit] = Spread::of(arithmetic[unit]);
    return limits;
  }

  std::unique_ptr<Model> model;
  std::unique_ptr<ThreadPool> pool;

private:
  int64_t slotOf(int64_t depth) const { return 1 + (std::ranges::find(depths, depth) - depths.begin()) * places; }

  /// `count` tokens of each of `sequences` slots, from `position` on; logits of the last of each, or none.
  Status step(int64_t firstSlot, int64_t sequences, int64_t position, int64_t count, std::span<float> logits) {
    std::vector<int32_t> tokens, positions, slots, rows;
    for (int64_t place = 0; place < sequences; ++place) {
      for (int64_t i = 0; i < count; ++i) {
        tokens.push_back(token(place, position + i));
        positions.push_back(static_cast<int32_t>(position + i));
        slots.push_back(static_cast<int32_t>(firstSlot + place));
      }
      if (!logits.empty())
        rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
    }
    return model->step(tokens, positions, slots, rows, logits);
  }
  /// Random, but the same for a place and position.
  int32_t token(int64_t place, int64_t position) const {
    const uint64_t draw = splitMix(static_cast<uint64_t>(place) << 32 | static_cast<uint64_t>(position));
    return static_cast<int32_t>(draw % static_cast<uint64_t>(model->vocab()));
  }

  int64_t places = 1; ///< slots for each depth
  std::vector<int64_t> depths;
  std::vector<double> bandwidths;
  std::array<std::vector<double>, std::size(workUnits)> arithmetic;
};

Status checkList(const std::string &option, const std::vector<int64_t> &values, int64_t least) {
  if (values.empty())
    return Error{option + " is empty, expected numbers between commas"};
  for (int64_t value : values)
    if (value < least)
      return Error{option + " has " + std::to_string(value) + ", expected at least " + std::to_string(least)};
  return success();
}

/// Each once, in the order given.
template <typename T> void dropRepeats(std::vector<T> &values) {
  std::vector<T> kept;
  for (T value : values)
    if (std::ranges::find(kept, value) == kept.end())
      kept.push_back(value);
  values = std::move(kept);
}

Status check(BenchOptions &options) {
  MOEC_CHECK(checkList("--prompt", options.prompts, 0));
  MOEC_CHECK(checkList("--predict", options.decodes, 0));
  MOEC_CHECK(checkList("--depth", options.depths, 0));
  MOEC_CHECK(checkList("--sequences", options.sequences, 1));
  if (options.repetitions < 1)
    return Error{"--repetitions is " + std::to_string(options.repetitions) + ", expected at least 1"};
  for (int &threads : options.threads) {
    if (threads < 0)
      return Error{"number of threads is " + std::to_string(threads) + ", expected 0 (all cores) or more"};
    if (threads == 0)
      threads = std::clamp(availableCores(), 1, ThreadPool::maxThreads);
  }
  dropRepeats(options.prompts);
  dropRepeats(options.decodes);
  dropRepeats(options.depths);
  dropRepeats(options.sequences);
  dropRepeats(options.threads);
  return success();
}

Result<std::vector<BenchTest>> testsOf(const BenchOptions &options, const Artifact &artifact) {
  const int64_t most = artifact.model().maxContext;
  const auto tooLong = [&](const std::string &what) {
    return Error{what + ", but the artifact is compiled for a context of " + std::to_string(most)};
  };
  std::vector<BenchTest> tests;
  for (int64_t prompt : options.prompts) {
    if (prompt > most)
      return tooLong("a prompt has " + std::to_string(prompt) + " tokens");
    BenchTest test;
    test.prompt = prompt;
    if (prompt > 0)
      tests.push_back(test);
  }
  for (int64_t sequences : options.sequences)
    for (int64_t depth : options.depths)
      for (int64_t decode : options.decodes) {
        if (decode == 0)
          continue;
        if (depth > most || decode > most - depth)
          return tooLong(std::to_string(decode) + " tokens at depth " + std::to_string(depth) + " are a context of " +
                         std::to_string(depth + decode));
        BenchTest test;
        test.decode = decode;
        test.depth = depth;
        test.sequences = sequences;
        tests.push_back(test);
      }
  if (tests.empty())
    return Error{"there is nothing to measure, as --prompt and --predict are 0"};
  return tests;
}

/// Counts what the test has to do, and is its warm-up: weights come into memory, pages of the cache are made.
Status count(Bench &bench, BenchTest &test) {
  const Artifact &artifact = bench.model->artifact();
  StepContext context;
  if (artifact.hasWork())
    bench.model->setObserver([&](const LaunchView &view) { test.work += workOf(artifact, view, context); });
  auto seconds = bench.run(test, [&](const StepContext &next) { context = next; });
  bench.model->setObserver(nullptr);
  return seconds.ok() ? success() : Status(seconds.takeError());
}

Status profile(Bench &bench, BenchTest &test, Trace *trace) {
  const Artifact &artifact = bench.model->artifact();
  StepContext context;
  if (trace)
    trace->begin(*bench.model, test.name() + ", " + std::to_string(bench.pool->threads()) + " threads");
  bench.model->setObserver([&](const LaunchView &view) {
    const KernelInfo &kernel = artifact.kernels()[artifact.launches()[view.launch].kernel];
    const Work work = workOf(artifact, view, context);
    for (ProfileEntry *entry : {&test.profile.kinds[kernel.kind], &test.profile.kernels[kernel.symbol]}) {
      entry->kind = kernel.kind;
      ++entry->launches;
      entry->seconds += std::chrono::duration<double>(view.finish - view.start).count();
      entry->work += work;
    }
    if (trace)
      trace->add(view);
  });
  auto seconds = bench.run(test, [&](const StepContext &next) { context = next; });
  bench.model->setObserver(nullptr);
  if (trace)
    MOEC_CHECK(trace->end());
  MOEC_TRY(test.profile.seconds, std::move(seconds));
  return success();
}

} // namespace

Result<BenchReport> moec::runBench(const BenchOptions &given) {
  BenchOptions options = given;
  MOEC_CHECK(check(options));
  std::vector<Bench> benches;
  std::vector<BenchTest> perThreads;
  for (int threads : options.threads) {
    if (benches.empty()) { // refusals come before any work
      MOEC_TRY(const Artifact artifact, Artifact::open(options.artifact));
      MOEC_TRY(perThreads, testsOf(options, artifact));
    }
    MOEC_TRY(Bench bench, Bench::open(options, threads));
    benches.push_back(std::move(bench));
  }
  std::optional<Trace> trace;
  if (!options.trace.empty()) {
    MOEC_TRY(Trace created, Trace::create(options.trace));
    trace.emplace(std::move(created));
  }

  BenchReport report;
  for (size_t i = 0; i < benches.size(); ++i)
    for (BenchTest &test : perThreads) {
      test.limits = i;
      report.tests.push_back(test);
    }
  const auto widest = std::ranges::max_element(benches, {}, [](const Bench &bench) { return bench.pool->threads(); });
  MOEC_TRY(const ReadProbe memory, ReadProbe::create(*widest->pool));
  for (Bench &bench : benches)
    MOEC_CHECK(bench.fill(perThreads));
  for (BenchTest &test : report.tests)
    MOEC_CHECK(count(benches[test.limits], test));
  for (int repetition = 0; repetition < options.repetitions; ++repetition)
    for (size_t i = 0; i < benches.size(); ++i) {
      benches[i].measure(memory);
      for (BenchTest &test : report.tests) {
        if (test.limits != i)
          continue;
        MOEC_TRY(const double seconds, benches[i].run(test));
        test.seconds.push_back(seconds);
      }
    }
  if (options.profile || trace)
    for (BenchTest &test : report.tests)
      MOEC_CHECK(profile(benches[test.limits], test, trace ? &*trace : nullptr));
  if (trace)
    MOEC_CHECK(trace->finish());

  const Artifact &artifact = benches.front().model->artifact();
  report.model = artifact.model();
  report.artifact = artifact.directory();
  const std::string description = benches.front().model->deviceDescription();
  report.device = description.substr(0, description.find(','));
  report.cpu = cpuName();
  report.cores = availableCores();
  report.repetitions = options.repetitions;
  report.hasWork = artifact.hasWork();
  report.hasProfile = options.profile;
  for (const Bench &bench : benches)
    report.limits.push_back(bench.limits());
  return report;
}
