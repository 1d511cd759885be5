// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Where a program runs: what Model needs from a chip, and no more.

#ifndef MOEC_RUNTIME_DEVICE_H
#define MOEC_RUNTIME_DEVICE_H

#include "runtime/Artifact.h"
#include "runtime/Support/Result.h"
#include "runtime/WeightCopies.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

namespace moec {

/// One run of the program, 1 <= T <= artifact.maxTokens(), R likewise or 0. All memory is the host's.
struct DeviceStep {
  std::span<const int32_t> tokens;    ///< T
  std::span<const int32_t> positions; ///< T
  std::span<const int32_t> slots;     ///< T
  std::span<const int32_t> rows;      ///< R, each below T
  /// [slots, pagesPerSlot]; every page that the step touches is in it. kReadableSlack readable bytes follow.
  std::span<const int32_t> pageTable;
  int64_t pagesPerSlot = 0;
  float *logits = nullptr;   ///< out: [R, V]; may be null if R is 0 or the artifact has an argmax
  int32_t *argmax = nullptr; ///< out: [R], may be null; else the artifact has an argmax
};

/// A launch that has just finished.
struct LaunchView {
  size_t launch = 0;            ///< index into artifact.launches()
  int64_t tokens = 0, rows = 0; ///< T and R of this run of the program
  /// One pointer per argument of the launch, in the manifest's order, offsets
  /// included; null for the logits of a run that has none. What launches write
  /// may be written, weights and inputs not.
  std::span<void *const> args;
  std::chrono::steady_clock::time_point start, finish; ///< of all its tasks
};

/// Some tasks of a launch that have just finished, one after another on one thread.
struct TaskView {
  size_t launch = 0;
  std::chrono::steady_clock::time_point start, finish;
};

/// Called between launches, by the thread that runs the step, while no kernel runs. Must not call the model.
using LaunchObserver = std::function<void(const LaunchView &)>;
/// Called during launches, by the threads that ran the tasks, several at a time. Must not call the model.
using TaskObserver = std::function<void(const TaskView &)>;

/// A chip that holds one artifact's code, weights, scratch memory and cache
/// pages, and runs its launch list. Used by one thread at a time.
class Device {
public:
  virtual ~Device() = default;
  /// For people: "x86-64-v4, 8 threads".
  virtual std::string description() const = 0;
  /// Makes place for `pages` zeroed pages in every cache. Memory is taken as
  /// pages are first used. Called once, before the first `run`.
  virtual Status reservePages(int64_t pages) = 0;
  /// Makes one page zero again, in every cache, and gives its memory back.
  virtual void clearPage(int32_t page) = 0;
  /// Runs all launches in order. When it returns, `logits` and `argmax` are filled and the
  /// step's entries are in the caches. The same bits for the same step and
  /// caches, always.
  virtual Status run(const DeviceStep &step) = 0;
  /// For tools: `observer` is told of every launch of the next runs, in their order; empty: of none, at no cost.
  virtual void setObserver(LaunchObserver observer) = 0;
  /// The same for the tasks of launches.
  virtual void setTaskObserver(TaskObserver observer) = 0;
};

struct CpuDeviceOptions {
  int threads = 0;         ///< 0: the physical cores available to the process
  std::string forcedLevel; ///< as MOEC_CPU; empty: the best that the machine has
  WeightPlacement weights = WeightPlacement::Mapped;
};

/// The CPU: weights are used where they are mapped or copied, code is loaded with dlopen,
/// a launch is a parallel loop. Refuses an artifact for another target or CPU.
/// `artifact` must outlive the device.
Result<std::unique_ptr<Device>> createCpuDevice(const Artifact &artifact, const CpuDeviceOptions &options);

} // namespace moec

#endif // MOEC_RUNTIME_DEVICE_H
