// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/ThreadPool.h"

#include "runtime/CpuInfo.h"
#include "runtime/Topology.h"

#include <algorithm>
#include <cassert>
#include <cfenv>
#include <string>
#include <system_error>

namespace moec {

static constexpr int indexBits = 32;
static constexpr uint64_t indexMask = (uint64_t(1) << indexBits) - 1;

static bool isOpen(uint64_t state) { return ((state >> indexBits) & 1) == 0; }
static uint64_t nextLoop(uint64_t state) { return ((state >> indexBits) + 1) << indexBits; }

static void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

Result<std::unique_ptr<ThreadPool>> ThreadPool::create(int threads) {
  if (threads < 1 || threads > maxThreads)
    return Error{"number of threads is " + std::to_string(threads) + ", expected 1 to " + std::to_string(maxThreads)};
  std::unique_ptr<ThreadPool> pool(new ThreadPool);
  // Spinning steals the very core that it waits for if there are more threads than cores.
  pool->spins = threads <= availableCores() ? 2000 : 0;
  pool->workers.reserve(threads - 1);
  try {
    // Shared out over the memory nodes, so that all of them are read.
    const Topology &machine = Topology::machine();
    for (int i = 1; i < threads; ++i)
      pool->workers.emplace_back([p = pool.get(), &machine, i] {
        machine.bindThread(i % machine.nodes());
        p->work();
      });
  } catch (const std::system_error &error) {
    return Error{"cannot start " + std::to_string(threads) + " threads: " + error.code().message()};
  }
  return pool;
}

ThreadPool::~ThreadPool() {
  stopping = true;
  ++started;
  started.notify_all();
  for (std::thread &worker : workers)
    worker.join();
}

int64_t ThreadPool::claimSize(int64_t begin, int64_t count) const {
  // Long stretches first, as neighbours share data and memory is read best in order; short ones at the end, so that
  // threads of unequal speed end together.
  const int64_t left = count - begin, share = 2 * threads();
  return std::min(left, std::max({int64_t(1), left / share, count / (16 * share)}));
}

void ThreadPool::help(uint64_t seen) {
  const uint64_t loop = seen >> indexBits;
  // If these belong to a later loop, `state` has left `loop` before they
  // were stored, and the first compare-exchange fails.
  const int64_t count = tasks.load(std::memory_order_acquire);
  Function function = body.load(std::memory_order_acquire);
  void *context = argument.load(std::memory_order_acquire);
  int64_t ran = 0;
  while (seen >> indexBits == loop) {
    int64_t begin = seen & indexMask;
    if (begin >= count)
      break;
    int64_t end = begin + claimSize(begin, count);
    if (!state.compare_exchange_weak(seen, (loop << indexBits) | static_cast<uint64_t>(end), std::memory_order_acq_rel,
                                     std::memory_order_acquire))
      continue;
    function(context, begin, end);
    ran += end - begin;
    seen = state.load(std::memory_order_acquire);
  }
  // Only those who ran tasks may touch `done`: they hold the loop open.
  if (ran != 0 && done.fetch_add(ran, std::memory_order_acq_rel) + ran == count) {
    ++finished;
    finished.notify_one();
  }
}

void ThreadPool::work() {
  // Kernels round as IEEE says, whatever the thread that loaded the model had set.
  std::fesetenv(FE_DFL_ENV);
  for (;;) {
    uint32_t ticket = started.load();
    uint64_t seen = state.load(std::memory_order_acquire);
    if (isOpen(seen) && static_cast<int64_t>(seen & indexMask) < tasks.load(std::memory_order_acquire))
      help(seen);
    if (stopping)
      return;
    int tries = 0;
    while (started.load(std::memory_order_acquire) == ticket && tries++ < spins)
      pause();
    if (started.load() == ticket) {
      ++sleepers;
      started.wait(ticket);
      --sleepers;
    }
  }
}

void ThreadPool::run(int64_t count, Function function, void *context) {
  assert(count >= 0 && count <= maxTasks);
  if (count == 0)
    return;
  if (workers.empty() || count == 1)
    return function(context, 0, count);

  const uint64_t closed = nextLoop(state.load(std::memory_order_relaxed));
  state.exchange(closed, std::memory_order_acq_rel);
  tasks.store(count, std::memory_order_release);
  body.store(function, std::memory_order_release);
  argument.store(context, std::memory_order_release);
  done.store(0, std::memory_order_relaxed);
  uint32_t before = finished.load(std::memory_order_relaxed);
  const uint64_t open = nextLoop(closed);
  state.store(open, std::memory_order_seq_cst);
  ++started;
  if (sleepers.load() != 0)
    started.notify_all();

  help(open);
  for (int tries = 0; finished.load(std::memory_order_acquire) == before;) {
    if (tries++ < spins)
      pause();
    else
      finished.wait(before, std::memory_order_acquire);
  }
}

} // namespace moec
