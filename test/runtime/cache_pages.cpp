// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/KvCache.h"
#include "runtime/LazyMemory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

using namespace moec;

namespace {

struct Book {
  std::vector<int32_t> cleared;
  KvCache cache;
  explicit Book(int64_t slots = 3, int64_t context = 200)
      : cache(slots, context, [this](int32_t page) { cleared.push_back(page); }) {}
  std::vector<int32_t> row(int64_t slot) const {
    auto table = cache.table();
    int64_t stride = cache.pagesPerSlot();
    return {table.begin() + slot * stride, table.begin() + (slot + 1) * stride};
  }
};

TEST(Cache, PagesComeWithUse) {
  Book book;
  EXPECT_EQ(book.cache.pagesPerSlot(), 4);
  EXPECT_EQ(book.cache.usedPages(), 0);
  book.cache.extend(0, 0, 64);
  EXPECT_EQ(book.cache.usedPages(), 1);
  book.cache.extend(1, 0, 65);
  EXPECT_EQ(book.cache.usedPages(), 3);
  book.cache.extend(0, 64, 1);
  EXPECT_EQ(book.row(0), (std::vector<int32_t>{0, 3, 0, 0}));
  EXPECT_EQ(book.row(1), (std::vector<int32_t>{1, 2, 0, 0}));
  EXPECT_EQ(book.cache.length(0), 65);
  EXPECT_EQ(book.cache.length(1), 65);
  EXPECT_EQ(book.cache.length(2), 0);
}

TEST(Cache, RewindingGivesPagesBackAndTheyAreUsedAgainLowestFirst) {
  Book book;
  book.cache.extend(0, 0, 200); // pages 0 to 3
  book.cache.extend(1, 0, 1);   // page 4
  book.cache.extend(0, 64, 1);  // keeps 0, gives back 1 to 3, takes 1
  EXPECT_EQ(book.cleared, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(book.row(0), (std::vector<int32_t>{0, 1, 0, 0}));
  book.cache.extend(2, 0, 129);
  EXPECT_EQ(book.row(2), (std::vector<int32_t>{2, 3, 5, 0}));
  book.cache.extend(0, 63, 1); // within the page
  EXPECT_EQ(book.cache.length(0), 64);
  book.cache.truncate(0, 0);
  EXPECT_EQ(book.cache.usedPages(), 4);
  EXPECT_EQ(book.row(0), (std::vector<int32_t>{0, 0, 0, 0}));
}

TEST(Cache, GapsAndOverfullSlotsAreRefused) {
  Book book;
  book.cache.extend(1, 0, 10);
  EXPECT_TRUE(book.cache.check(1, 10, 190).ok());
  EXPECT_TRUE(book.cache.check(1, 0, 200).ok());
  auto gap = book.cache.check(1, 11, 1);
  ASSERT_FALSE(gap.ok());
  EXPECT_EQ(gap.message(), "slot 1 holds 10 tokens, so the next position is at most 10, but the step has 11");
  auto full = book.cache.check(1, 10, 191);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.message(), "slot 1 would hold 201 tokens, but the artifact is compiled for a context of 200");
}

TEST(Cache, CountsOfPagesAreBounded) {
  EXPECT_EQ(*KvCache::pagesFor(3, 65), 6);
  EXPECT_FALSE(KvCache::pagesFor(0, 64).ok());
  EXPECT_FALSE(KvCache::pagesFor(-1, 64).ok());
  EXPECT_FALSE(KvCache::pagesFor(int64_t(1) << 40, 64).ok());
  EXPECT_TRUE(KvCache::pagesFor((int64_t(1) << 31) - 1, 64).ok());
}

TEST(Cache, ClearedMemoryIsZeroAndItsNeighboursAreNot) {
  auto memory = LazyMemory::allocate(100000, "a test");
  ASSERT_TRUE(memory.ok());
  struct {
    uint64_t offset, size;
  } const ranges[] = {{0, 100000}, {1, 5}, {4095, 2}, {4096, 4096}, {4000, 9000}, {100, 0}, {99999, 1}};
  for (auto [offset, size] : ranges) {
    std::memset(memory->data(), 0x5a, 100000);
    memory->clear(offset, size);
    for (uint64_t i = 0; i < 100000; ++i) {
      bool inside = i >= offset && i < offset + size;
      ASSERT_EQ(memory->data()[i], std::byte(inside ? 0 : 0x5a))
          << "byte " << i << " after clearing " << size << " at " << offset;
    }
  }
}

TEST(Cache, MoreMemoryThanTheMachineCanAddressIsASentence) {
  auto memory = LazyMemory::allocate(uint64_t(1) << 60, "the cache 'kv.0'");
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.message().find("cannot reserve 1152921504606846976 bytes for the cache 'kv.0'"), 0u)
      << memory.message();
}

} // namespace
