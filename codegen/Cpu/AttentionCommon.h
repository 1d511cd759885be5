// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What both forms of latent attention share: the runs of a step, the pages of the
/// cache, and scores and softmax of 16 queries side by side. A lane of a vector is
/// a query, of a head (absorbed form) or of a token (expanded form); what it meets
/// is one element of a key, broadcast. So a key once loaded serves all queries and
/// the softmax needs no sums across lanes.
///
/// Queries, keys, probabilities and values lie in words: one f32 or, where the
/// cache holds bf16, two bf16, of which the first is the lower half. Then what is
/// not in the cache is rounded to bf16 and products are those of bf16, summed up
/// in f32.

#ifndef MOEC_CODEGEN_CPU_ATTENTIONCOMMON_H
#define MOEC_CODEGEN_CPU_ATTENTIONCOMMON_H

#include "codegen/Common/KernelSpec.h"
#include "codegen/Cpu/KernelBuilder.h"
#include "runtime/KernelAbi.h"

#include <bit>

namespace moec::cpu {

/// The greatest power of two that is not above `number` (at least 1): tiles of so many divide a page.
inline int64_t powerOfTwoWithin(int64_t number) {
  return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(number)));
}

/// Whether the run around `token`, its longest stretch of neighbours in `slots` of one slot, has at least `length`
/// tokens (i1). Looks at no more than `length` - 1 tokens to each side.
Val runHasAtLeast(KernelBuilder &b, Ptr slots, Val token, int64_t length);

/// The cache of an attention kernel, by pages. Pages of codes are unpacked to bf16, into memory of the task, before
/// they are read: 72 KiB for DeepSeek's entries, which the L2 cache of a core holds.
class CachePages {
public:
  /// Of argument `index`.
  template <class Spec>
  CachePages(KernelBuilder &b, int64_t index, const Spec &spec)
      : CachePages(b, b.arg(index, b.storage(cacheElement(spec))), spec.cache, spec.codes, {spec.latent, spec.rope},
                   spec.width) {}

  /// Page `page` (i64) as it lies in memory, `pageBytes()` bytes.
  Ptr stored(Val page) const { return cache + page * (MOE_PAGE_TOKENS * stride); }
  int64_t pageBytes() const { return MOE_PAGE_TOKENS * stride * byteSize(element); }
  /// At least the first `count` entries of page `page`, each `width` elements of the spec's type `cache` after the one
  /// before; until the next call.
  Ptr read(Val page, Val count) const;

private:
  CachePages(KernelBuilder &b, Ptr cache, DType type, CacheCodes codes, CodedEntry entry, int64_t width);
  std::pair<Val, Val> codeValues(Ptr from) const;
  void unpack(Ptr from, Ptr to) const;

  KernelBuilder &b;
  Ptr cache, unpacked;
  CacheCodes codes;
  CodedEntry entry;
  int64_t width;
  DType element;  ///< of the cache's memory
  int64_t stride; ///< from one entry to the next there, in such elements
};

class AttentionWords {
public:
  AttentionWords(KernelBuilder &b, DType cache)
      : halves(cache == DType::BF16), elements(halves ? 2 : 1), b(b), storage(cache) {}

  const bool halves;      ///< whether words are two bf16
  const int64_t elements; ///< of a word

  mlir::Type type() const { return halves ? b.i32 : b.f32; }
  int64_t count(int64_t width) const { return (width + elements - 1) / elements; }
  /// The same memory as words, as elements.
  Ptr words(Ptr at) const { return {at.base, type()}; }
  Ptr single(Ptr at) const { return {at.base, b.storage(storage)}; }

  /// `sums` and the products of the words of two vectors, lane by lane: the second of two elements first. One that is
  /// broadcast comes last: where nothing else needs it, the instruction reads it from memory as it multiplies, while
  /// one that broadcasts alone takes a third of its time.
  Val dot(Val sums, Val x, Val y) const;
  /// What is stored of 16 f32 lanes as single elements.
  Val narrowed(Val lanes) const { return halves ? b.toBf16(lanes) : lanes; }
  /// Words of f32 lanes `first` and, where words are of two elements, `second`.
  Val paired(Val first, Val second) const { return halves ? b.pairBf16(first, second) : first; }

  /// to[word][lane] = that word of the f32 row rows[lane], `width` elements wide; a last element without a second one
  /// is beside a zero. Writes whole tiles of 16 words, zeros after the last.
  void transposeRows(llvm::ArrayRef<Ptr> rows, int64_t width, Ptr to) const;

  /// What `addScores` multiplies.
  struct Products {
    Ptr keys;            ///< words; of key j from keys + j * keyStride on
    int64_t keyStride;   ///< in words
    Ptr queries;         ///< [vector][word][16 queries]
    int64_t queryStride; ///< words from one vector of queries to the next, 16 lanes each
    int64_t words;
  };
  /// scores[vector][key j][query] += key j . query, one chain over the words; keys up to a whole tile of `tile` are
  /// scored. With `begins`, sums start from 0.
  void addScores(const Products &of, Val keys, int64_t tile, int64_t vectors, Ptr scores, bool begins) const;

  /// The softmax over keys so far, of 16 queries.
  struct Softmax {
    Val maximum, sum;
    Val factor; ///< what the weighted sums of earlier keys are multiplied by
  };
  /// Folds scores[key][query], times `scale`, of `keys` more keys into the maximum and sum so far. Query l counts the
  /// first seen[l] (i32) of them, the others with probability 0. Writes probabilities[word of keys][query] relative to
  /// the new maximum.
  Softmax softmax(Ptr scores, Val keys, Val seen, double scale, Val maximum, Val sum, Ptr probabilities) const;

private:
  Val wordsOfRow(Ptr from, int64_t width) const;
  void transpose(Vals &lines) const;

  KernelBuilder &b;
  DType storage;
};

} // namespace moec::cpu

#endif // MOEC_CODEGEN_CPU_ATTENTIONCOMMON_H
