// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/ThreadPool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cfenv>
#include <memory>
#include <vector>

using namespace moec;

namespace {

std::unique_ptr<ThreadPool> pool(int threads) {
  auto result = ThreadPool::create(threads);
  EXPECT_TRUE(result.ok());
  return std::move(*result);
}

class Threads : public testing::TestWithParam<int> {};

TEST_P(Threads, EachTaskRunsOnce) {
  auto threads = pool(GetParam());
  EXPECT_EQ(threads->threads(), GetParam());
  for (int64_t count : {0, 1, 2, 3, 5, 16, 63, 64, 65, 1000, 4097}) {
    std::vector<std::atomic<int>> ran(count + 1);
    threads->parallelFor(count, [&](int64_t begin, int64_t end) {
      EXPECT_LT(begin, end);
      for (int64_t i = begin; i < end; ++i)
        ++ran[i];
    });
    for (int64_t i = 0; i < count; ++i)
      EXPECT_EQ(ran[i], 1) << "task " << i << " of " << count;
    EXPECT_EQ(ran[count], 0);
  }
}

TEST_P(Threads, LoopsSeeWhatTheOnesBeforeWrote) {
  // Plain memory, thousands of short loops, each reading the other tasks' results of the one before.
  auto threads = pool(GetParam());
  std::vector<int64_t> a(97), b(97);
  for (int loop = 0; loop < 5000; ++loop) {
    threads->parallelFor(97, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        b[i] = a[(i + 1) % 97] + 1;
    });
    std::swap(a, b);
  }
  for (int64_t value : a)
    EXPECT_EQ(value, 5000);
}

TEST_P(Threads, LoopsOfChangingSizeDoNotMix) {
  auto threads = pool(GetParam());
  for (int loop = 0; loop < 3000; ++loop) {
    int64_t count = loop * 7919 % 40;
    std::atomic<int64_t> sum{0};
    threads->parallelFor(count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        sum += i + 1;
    });
    ASSERT_EQ(sum, count * (count + 1) / 2) << "loop " << loop;
  }
}

INSTANTIATE_TEST_SUITE_P(Pool, Threads, testing::Values(1, 2, 3, 5, 16));

TEST(Pool, WorkersRoundToNearestWhateverTheirCreatorDid) {
  std::fesetround(FE_UPWARD);
  auto threads = pool(4);
  std::fesetround(FE_TONEAREST);
  std::atomic<int> wrong{0};
  for (int loop = 0; loop < 100; ++loop)
    threads->parallelFor(64, [&](int64_t, int64_t) { wrong += std::fegetround() != FE_TONEAREST; });
  EXPECT_EQ(wrong, 0);
}

TEST(Pool, RefusesSillyNumbers) {
  EXPECT_FALSE(ThreadPool::create(0).ok());
  EXPECT_FALSE(ThreadPool::create(-3).ok());
  auto many = ThreadPool::create(1000000);
  ASSERT_FALSE(many.ok());
  EXPECT_EQ(many.message(), "number of threads is 1000000, expected 1 to 1024");
}

} // namespace
