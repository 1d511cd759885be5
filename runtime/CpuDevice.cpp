// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/CpuInfo.h"
#include "runtime/Device.h"
#include "runtime/KernelAbi.h"
#include "runtime/LazyMemory.h"
#include "runtime/ThreadPool.h"
#include "runtime/Topology.h"
#include "runtime/WeightCopies.h"

#include <algorithm>
#include <cassert>
#include <cfenv>
#include <cstring>
#include <limits>

#include <dlfcn.h>

namespace moec {

namespace {

using Clock = std::chrono::steady_clock;

/// IEEE defaults while kernels run: a caller that flushes denormals would get other bits.
class DefaultFloatEnvironment {
public:
  DefaultFloatEnvironment() {
    std::fegetenv(&saved);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&saved); }

private:
  std::fenv_t saved;
};

/// An input of the step in memory of our own, so that kernels may read past its end.
struct InputBuffer {
  std::vector<int32_t> storage;

  explicit InputBuffer(int64_t entries) : storage(entries + kReadableSlack / sizeof(int32_t)) {}
  void fill(std::span<const int32_t> values) { std::copy(values.begin(), values.end(), storage.begin()); }
};

class CpuDevice final : public Device {
public:
  CpuDevice(const Artifact &artifact)
      : artifact(artifact), tokens(artifact.maxTokens()), positions(artifact.maxTokens()), slots(artifact.maxTokens()),
        rows(artifact.maxTokens()), argmax(artifact.hasArgmax() ? artifact.maxTokens() : 0) {}
  ~CpuDevice() override {
    pool.reset(); // before the code that it runs
    if (library)
      ::dlclose(library);
  }

  Status load(const CpuDeviceOptions &options);
  std::string description() const override {
    return level + ", " + std::to_string(pool->threads()) + (pool->threads() == 1 ? " thread" : " threads");
  }
  Status reservePages(int64_t pages) override;
  void clearPage(int32_t page) override;
  Status run(const DeviceStep &step) override;
  void setObserver(LaunchObserver observer) override { this->observer = std::move(observer); }
  void setTaskObserver(TaskObserver observer) override { taskObserver = std::move(observer); }

private:
  struct BoundLaunch {
    moe_kernel kernel;
    std::vector<std::vector<void *>> args; ///< for each copy of the weights
  };
  /// A pointer that changes from step to step.
  struct Patch {
    size_t launch, arg;
  };

  Status loadCode(const std::string &forcedLevel);
  void bind();

  const Artifact &artifact;
  std::string level;
  void *library = nullptr;
  std::vector<moe_kernel> kernels;
  std::unique_ptr<ThreadPool> pool;
  WeightCopies copies;
  LazyMemory arena;
  std::vector<LazyMemory> caches;
  InputBuffer tokens, positions, slots, rows;
  std::vector<int32_t> argmax; ///< of the step's rows
  std::vector<BoundLaunch> launches;
  std::vector<Patch> logitsPatches, pageTablePatches;
  LaunchObserver observer;
  TaskObserver taskObserver;
};

/// The longest and the shortest run of neighbouring tokens of one slot.
struct Runs {
  int64_t longest = 0, shortest = std::numeric_limits<int64_t>::max();

  explicit Runs(std::span<const int32_t> slots) {
    for (auto begin = slots.begin(); begin != slots.end();) {
      auto end = std::find_if(begin, slots.end(), [&](int32_t slot) { return slot != *begin; });
      longest = std::max<int64_t>(longest, end - begin);
      shortest = std::min<int64_t>(shortest, end - begin);
      begin = end;
    }
  }
};

} // namespace

Status CpuDevice::loadCode(const std::string &forcedLevel) {
  if (artifact.target() != "cpu")
    return Error{artifact.directory() + ": is compiled for the target '" + artifact.target() +
                 "', but this device is a cpu"};
  std::vector<CpuLevel> levels;
  for (const CodeFile &code : artifact.code()) {
    std::optional<CpuLevel> parsed = cpuLevelFromString(code.level);
    if (!parsed)
      return Error{artifact.directory() + ": has code for '" + code.level + "', expected one of " + cpuLevelNames()};
    levels.push_back(*parsed);
  }
  MOEC_TRY(size_t choice, chooseCpuLevel(levels, machineCpuLevel(), forcedLevel, artifact.directory()));
  const CodeFile &code = artifact.code()[choice];
  level = code.level;
  library = ::dlopen(code.path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *reason = ::dlerror();
    return Error{code.path + ": cannot be loaded: " + (reason ? reason : "unknown reason")};
  }
  for (const KernelInfo &kernel : artifact.kernels()) {
    void *symbol = ::dlsym(library, kernel.symbol.c_str());
    if (!symbol)
      return Error{code.path + ": has no kernel '" + kernel.symbol + "', which the manifest names"};
    kernels.push_back(reinterpret_cast<moe_kernel>(symbol));
  }
  return success();
}

Status CpuDevice::load(const CpuDeviceOptions &options) {
  MOEC_CHECK(loadCode(options.forcedLevel));
  MOEC_TRY(arena, LazyMemory::allocate(artifact.arenaBytes(), "the scratch memory of a step"));
  const int threads = options.threads == 0 ? std::min(availableCores(), ThreadPool::maxThreads) : options.threads;
  MOEC_TRY(pool, ThreadPool::create(threads));
  MOEC_TRY(copies, WeightCopies::make(artifact, options.weights, *pool));
  return success();
}

void CpuDevice::bind() {
  using Kind = ArgInfo::Kind;
  for (const LaunchInfo &launch : artifact.launches()) {
    BoundLaunch bound;
    bound.kernel = kernels[launch.kernel];
    std::vector<void *> args;
    for (const ArgInfo &arg : launch.args) {
      const std::byte *base = nullptr;
      switch (arg.kind) {
      case Kind::Tokens:
        base = reinterpret_cast<std::byte *>(tokens.storage.data());
        break;
      case Kind::Positions:
        base = reinterpret_cast<std::byte *>(positions.storage.data());
        break;
      case Kind::Slots:
        base = reinterpret_cast<std::byte *>(slots.storage.data());
        break;
      case Kind::Rows:
        base = reinterpret_cast<std::byte *>(rows.storage.data());
        break;
      case Kind::PageTable:
        pageTablePatches.push_back({launches.size(), args.size()});
        break;
      case Kind::Logits:
        logitsPatches.push_back({launches.size(), args.size()});
        break;
      case Kind::Argmax:
        base = reinterpret_cast<std::byte *>(argmax.data());
        break;
      case Kind::Weight:
        base = artifact.weights()[arg.index].data;
        break;
      case Kind::Cache:
        base = caches[arg.index].data();
        break;
      case Kind::Buffer:
        base = arena.data() + artifact.buffers()[arg.index].offset;
        break;
      }
      // Kernels write only through arguments that the program says they write.
      args.push_back(const_cast<std::byte *>(base ? base + arg.offset : nullptr));
    }
    bound.args.assign(std::max<size_t>(copies.count(), 1), args);
    for (size_t copy = 0; copy < copies.count(); ++copy)
      for (size_t i = 0; i < args.size(); ++i)
        if (const ArgInfo &arg = launch.args[i]; arg.kind == Kind::Weight)
          bound.args[copy][i] = const_cast<std::byte *>(copies.at(copy, arg.index) + arg.offset);
    launches.push_back(std::move(bound));
  }
}

Status CpuDevice::reservePages(int64_t pages) {
  assert(launches.empty() && "called once");
  for (const CacheInfo &cache : artifact.caches()) {
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(cache.pageBytes, static_cast<uint64_t>(pages), &bytes))
      return Error{"a cache of " + std::to_string(pages) + " pages of " + std::to_string(cache.pageBytes) +
                   " bytes is too large"};
    MOEC_TRY(LazyMemory memory, LazyMemory::allocate(bytes, "the cache '" + cache.name + "'"));
    caches.push_back(std::move(memory));
  }
  bind();
  return success();
}

void CpuDevice::clearPage(int32_t page) {
  for (size_t i = 0; i < caches.size(); ++i) {
    uint64_t bytes = artifact.caches()[i].pageBytes;
    caches[i].clear(page * bytes, bytes);
  }
}

Status CpuDevice::run(const DeviceStep &step) {
  assert(static_cast<int64_t>(step.tokens.size()) <= artifact.maxTokens() && !step.tokens.empty());
  assert(static_cast<int64_t>(step.rows.size()) <= artifact.maxTokens());
  assert(step.rows.empty() || step.logits || artifact.hasArgmax());
  assert(!step.argmax || artifact.hasArgmax());
  tokens.fill(step.tokens);
  positions.fill(step.positions);
  slots.fill(step.slots);
  rows.fill(step.rows);
  const auto patch = [&](const std::vector<Patch> &patches, void *pointer) {
    for (const Patch &patch : patches)
      for (std::vector<void *> &args : launches[patch.launch].args)
        args[patch.arg] = pointer;
  };
  patch(pageTablePatches, const_cast<int32_t *>(step.pageTable.data()));
  patch(logitsPatches, step.logits);

  const moe_step shape{static_cast<int64_t>(step.tokens.size()), static_cast<int64_t>(step.rows.size()),
                       step.pagesPerSlot};
  const Runs runs(step.slots);
  DefaultFloatEnvironment environment;
  for (size_t i = 0; i < launches.size(); ++i) {
    const BoundLaunch &launch = launches[i];
    const LaunchInfo &info = artifact.launches()[i];
    if (runs.longest < info.runFrom || runs.shortest >= info.runBelow)
      continue;
    const int64_t tasks = std::max<int64_t>(info.tasks(shape.tokens, shape.rows), 0);
    const auto runTasks = [&](int64_t begin, int64_t end) {
      const size_t copy = launch.args.size() == 1 ? 0 : static_cast<size_t>(Topology::machine().currentNode());
      launch.kernel(launch.args[copy].data(), &shape, begin, end);
    };
    if (!observer && !taskObserver) {
      pool->parallelFor(tasks, runTasks);
      continue;
    }
    const Clock::time_point start = Clock::now();
    pool->parallelFor(tasks, [&](int64_t begin, int64_t end) {
      const Clock::time_point taskStart = Clock::now();
      runTasks(begin, end);
      if (taskObserver)
        taskObserver({i, taskStart, Clock::now()});
    });
    if (observer)
      observer({i, shape.tokens, shape.rows, launch.args.front(), start, Clock::now()});
  }
  if (step.argmax)
    std::copy_n(argmax.begin(), step.rows.size(), step.argmax);
  return success();
}

Result<std::unique_ptr<Device>> createCpuDevice(const Artifact &artifact, const CpuDeviceOptions &options) {
  auto device = std::make_unique<CpuDevice>(artifact);
  MOEC_CHECK(device->load(options));
  return std::unique_ptr<Device>(std::move(device));
}

} // namespace moec
