// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// Which page of the key-value cache holds which tokens of which sequence.

#ifndef MOEC_RUNTIME_KVCACHE_H
#define MOEC_RUNTIME_KVCACHE_H

#include "runtime/Support/Result.h"

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace moec {

/// The book of a paged cache; the pages' bytes are the device's.
///
/// A slot holds one sequence of at most `maxContext` tokens. Its entry i lies
/// in page `table[slot][i / 64]`; the same page id serves the caches of all
/// layers. Pages are handed out lowest first, so equal calls give equal tables.
class KvCache {
public:
  /// `clearPage` is told of each page that a slot gives back, and must make it
  /// zero. maxSlots * pagesPerSlot fits an int32_t (see pagesFor).
  KvCache(int64_t maxSlots, int64_t maxContext, std::function<void(int32_t)> clearPage);

  /// Pages that `maxSlots` full sequences take, or a sentence if they are too many to count.
  static Result<int64_t> pagesFor(int64_t maxSlots, int64_t maxContext);

  int64_t maxSlots() const { return static_cast<int64_t>(lengths.size()); }
  int64_t maxContext() const { return context; }
  int64_t pagesPerSlot() const { return stride; }
  /// Tokens in a slot.
  int64_t length(int64_t slot) const { return lengths[slot]; }
  /// Pages in use by all slots.
  int64_t usedPages() const { return used; }
  /// i32 [maxSlots, pagesPerSlot], kReadableSlack readable bytes behind it. Entries that belong to no token are 0.
  std::span<const int32_t> table() const { return {pages.data(), lengths.size() * stride}; }

  /// Whether tokens may be put at `[begin, begin + count)` of a slot: no gap
  /// behind its length, no end beyond maxContext. 0 <= slot < maxSlots.
  Status check(int64_t slot, int64_t begin, int64_t count) const;
  /// Makes the slot's length `begin + count` after a successful check with the
  /// same values: what was at `begin` and later is forgotten, pages come and go.
  void extend(int64_t slot, int64_t begin, int64_t count);
  /// Forgets what is at `length` and later, length <= length(slot).
  void truncate(int64_t slot, int64_t length);

private:
  int64_t context, stride;
  std::function<void(int32_t)> clear;
  std::vector<int64_t> lengths;
  std::vector<int32_t> pages;
  std::vector<int32_t> freed; ///< a heap, lowest first
  int32_t fresh = 0;          ///< pages never used yet start here
  int64_t used = 0;
};

} // namespace moec

#endif // MOEC_RUNTIME_KVCACHE_H
