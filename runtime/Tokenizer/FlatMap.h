// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// A hash map from 64-bit keys to small values in one array: the merge loop
/// asks it several times per byte of text.

#ifndef MOEC_RUNTIME_TOKENIZER_FLATMAP_H
#define MOEC_RUNTIME_TOKENIZER_FLATMAP_H

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace moec {

/// Keys are any number but `~0`; entries are never removed.
template <typename Value> class FlatMap {
public:
  explicit FlatMap(size_t expected = 0) { rehash(expected * 2); }

  /// The value of `key`, or null.
  const Value *find(uint64_t key) const {
    const Slot &slot = slots[place(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

  /// The value of `key`, made with `Value()` if there is none.
  Value &operator[](uint64_t key) {
    assert(key != kEmpty);
    if ((used + 1) * 2 > slots.size())
      rehash(slots.size() * 2);
    Slot &slot = slots[place(key)];
    if (slot.key == kEmpty) {
      slot.key = key;
      ++used;
    }
    return slot.value;
  }

private:
  static constexpr uint64_t kEmpty = ~uint64_t(0);
  struct Slot {
    uint64_t key = kEmpty;
    Value value = Value();
  };

  /// Where `key` is, or where it would go. Half of the slots are free, so the search ends.
  size_t place(uint64_t key) const {
    uint64_t hash = (key ^ (key >> 31)) * 0x9e3779b97f4a7c15u;
    size_t mask = slots.size() - 1, i = (hash ^ (hash >> 29)) & mask;
    while (slots[i].key != key && slots[i].key != kEmpty)
      i = (i + 1) & mask;
    return i;
  }

  void rehash(size_t wanted) {
    size_t size = 16;
    while (size < wanted)
      size *= 2;
    std::vector<Slot> old(size);
    old.swap(slots);
    for (Slot &slot : old)
      if (slot.key != kEmpty)
        slots[place(slot.key)] = slot;
  }

  std::vector<Slot> slots;
  size_t used = 0;
};

} // namespace moec

#endif // MOEC_RUNTIME_TOKENIZER_FLATMAP_H
