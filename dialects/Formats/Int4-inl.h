// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/// \file
/// What both ways of quantizing to int4 need, compiled for each of Highway's targets.

// Highway includes this again for each target.
#if defined(MOEC_DIALECTS_FORMATS_INT4_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef MOEC_DIALECTS_FORMATS_INT4_INL_H
#undef MOEC_DIALECTS_FORMATS_INT4_INL_H
#else
#define MOEC_DIALECTS_FORMATS_INT4_INL_H
#endif

#include "dialects/Formats/Int4.h"

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moec::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR

/// Vectors of at most 16 lanes: a cache line, and half a group.
using Floats = hn::CappedTag<float, 16>;
using Words = hn::RebindToUnsigned<Floats>;
using Halves = hn::Rebind<uint16_t, Floats>;

/// The bits of scales in `type`, and the values they have then.
HWY_INLINE auto roundScale(DType type, hn::Vec<Floats> exact) {
  const Floats floats;
  const Words words;
  struct {
    hn::Vec<Halves> bits;
    hn::Vec<Floats> value;
  } scale;
  if (type == DType::F16) {
    auto rounded = hn::DemoteTo(hn::Rebind<hwy::float16_t, Floats>(), exact);
    scale.bits = hn::BitCast(Halves(), rounded);
    scale.value = hn::PromoteTo(floats, rounded);
  } else {
    // To nearest even: half of the last bit that stays, less one where that is even. A NaN could become a number.
    auto word = hn::BitCast(words, exact);
    auto odd = hn::And(hn::ShiftRight<16>(word), hn::Set(words, 1));
    auto rounded = hn::ShiftRight<16>(hn::Add(word, hn::Add(odd, hn::Set(words, 0x7FFF))));
    scale.bits = hn::DemoteTo(Halves(), hn::BitCast(hn::RebindToSigned<Words>(), rounded));
    scale.value = hn::IfThenElse(hn::Eq(exact, exact), hn::BitCast(floats, hn::ShiftLeft<16>(rounded)), exact);
  }
  return scale;
}

/// Asks for bytes `[begin, end)` of four rows, some at a time: see `packInt4`. `begin` is a multiple of 32.
HWY_INLINE void readAhead(const std::byte *rows, int64_t stride, int64_t begin, int64_t end) {
  constexpr int64_t line = 64;
  if (rows)
    for (int64_t at = (begin + line - 1) / line * line; at < end; at += line)
      for (int64_t r = 0; r < kInt4Rows; ++r)
        __builtin_prefetch(rows + r * stride + at);
}

#endif // HWY_SCALAR

} // namespace moec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif // MOEC_DIALECTS_FORMATS_INT4_INL_H
