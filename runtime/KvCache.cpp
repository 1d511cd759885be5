// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/KvCache.h"

#include "runtime/Artifact.h"
#include "runtime/KernelAbi.h"

#include <algorithm>
#include <cassert>
#include <functional>
#include <limits>
#include <string>

namespace moec {

static int64_t pagesOf(int64_t tokens) { return (tokens + MOE_PAGE_TOKENS - 1) / MOE_PAGE_TOKENS; }

KvCache::KvCache(int64_t maxSlots, int64_t maxContext, std::function<void(int32_t)> clearPage)
    : context(maxContext), stride(pagesOf(maxContext)), clear(std::move(clearPage)), lengths(maxSlots),
      pages(maxSlots * stride + kReadableSlack / sizeof(int32_t)) {}

Result<int64_t> KvCache::pagesFor(int64_t maxSlots, int64_t maxContext) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (maxSlots < 1 || maxSlots > most / pagesOf(maxContext))
    return Error{"number of slots is " + std::to_string(maxSlots) + ", expected 1 to " +
                 std::to_string(most / pagesOf(maxContext))};
  return maxSlots * pagesOf(maxContext);
}

Status KvCache::check(int64_t slot, int64_t begin, int64_t count) const {
  if (begin > lengths[slot])
    return Error{"slot " + std::to_string(slot) + " holds " + std::to_string(lengths[slot]) +
                 " tokens, so the next position is at most " + std::to_string(lengths[slot]) + ", but the step has " +
                 std::to_string(begin)};
  if (count > context - begin)
    return Error{"slot " + std::to_string(slot) + " would hold " + std::to_string(begin + count) +
                 " tokens, but the artifact is compiled for a context of " + std::to_string(context)};
  return success();
}

void KvCache::extend(int64_t slot, int64_t begin, int64_t count) {
  assert(check(slot, begin, count).ok());
  truncate(slot, begin);
  const int64_t end = begin + count;
  for (int64_t page = pagesOf(begin); page < pagesOf(end); ++page) {
    int32_t id = fresh;
    if (freed.empty()) {
      ++fresh;
    } else {
      std::pop_heap(freed.begin(), freed.end(), std::greater<>());
      id = freed.back();
      freed.pop_back();
    }
    pages[slot * stride + page] = id;
    ++used;
  }
  lengths[slot] = end;
}

void KvCache::truncate(int64_t slot, int64_t length) {
  assert(length <= lengths[slot]);
  for (int64_t page = pagesOf(length); page < pagesOf(lengths[slot]); ++page) {
    int32_t &id = pages[slot * stride + page];
    clear(id);
    freed.push_back(id);
    std::push_heap(freed.begin(), freed.end(), std::greater<>());
    id = 0;
    --used;
  }
  lengths[slot] = length;
}

} // namespace moec
