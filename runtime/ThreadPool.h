// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Threads that share the tasks of one launch after another.

#ifndef MOEC_RUNTIME_THREADPOOL_H
#define MOEC_RUNTIME_THREADPOOL_H

#include "runtime/Support/Result.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace moec {

/// A fixed set of threads for short parallel loops, thousands a second.
///
/// The caller of `parallelFor` works too; `threads == 1` starts no thread at
/// all. Between loops the threads spin for some ten microseconds, as the next
/// launch of a step is that near, and then sleep. A loop ends when its last
/// task ends: a thread that wakes too late for it is not waited for.
class ThreadPool {
public:
  /// Loops may have this many tasks at most.
  static constexpr int64_t maxTasks = (int64_t(1) << 32) - 1;
  static constexpr int maxThreads = 1024;

  /// Starts `threads - 1` threads, 1 <= threads <= maxThreads.
  static Result<std::unique_ptr<ThreadPool>> create(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int threads() const { return static_cast<int>(workers.size()) + 1; }

  /// Calls `body(begin, end)` for disjoint ranges that together are
  /// `[0, count)`, from several threads at once, and returns when all have
  /// returned; what they wrote is then visible to the caller. Which ranges
  /// and which thread runs them is not determined. `body` must not throw and
  /// must not call `parallelFor`; one caller at a time. 0 <= count <= maxTasks.
  template <typename Body> void parallelFor(int64_t count, Body &&body) {
    using Plain = std::remove_reference_t<Body>;
    run(
        count, [](void *context, int64_t begin, int64_t end) { (*static_cast<Plain *>(context))(begin, end); },
        const_cast<void *>(static_cast<const void *>(&body)));
  }

private:
  using Function = void (*)(void *context, int64_t begin, int64_t end);

  ThreadPool() = default;
  void run(int64_t count, Function function, void *context);
  void work();
  /// How many tasks of `count` are claimed at once when those from `begin` on are left.
  int64_t claimSize(int64_t begin, int64_t count) const;
  /// Claims and runs ranges of the open loop until none is left; `seen` is the
  /// value of `state` that showed it.
  void help(uint64_t seen);

  // `state` is the number of the loop (high 32 bits; odd while the fields below
  // change, else even) and its next unclaimed task (low 32 bits).
  // A claim is a compare-exchange of the whole: it succeeds only in the loop
  // whose fields were read before.
  alignas(64) std::atomic<uint64_t> state{0};
  alignas(64) std::atomic<int64_t> done{0};
  std::atomic<uint32_t> finished{0}; ///< counts ended loops; the caller sleeps on it
  alignas(64) std::atomic<int64_t> tasks{0};
  std::atomic<Function> body{nullptr};
  std::atomic<void *> argument{nullptr};
  alignas(64) std::atomic<uint32_t> started{0}; ///< counts begun loops; idle workers sleep on it
  std::atomic<int> sleepers{0};
  std::atomic<bool> stopping{false};
  int spins = 0;
  std::vector<std::thread> workers;
};

} // namespace moec

#endif // MOEC_RUNTIME_THREADPOOL_H
