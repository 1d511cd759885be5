// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Formats/Int4OfF8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

// Highway compiles what follows once for each of its targets and picks one when it is called. Those of x86 without
// fused multiply-add are left out: machines that lack it take the scalar form.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
// That of byte permutations across 64 bytes is on offer only where it is asked for.
#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dialects/Formats/Int4OfF8.cpp"
#include <hwy/foreach_target.h> // must come before highway.h

#include "dialects/Formats/Int4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moec::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Columns `[begin, end)`, which share a scale, by way of their values.
HWY_NOINLINE bool packF8Values(const Int4Panel &panel, const StoredRows &rows, int64_t begin, int64_t end, float scale,
                               int64_t lane, std::byte *out) {
  const int64_t cols = end - begin;
  std::vector<float> values(kInt4Rows * cols);
  for (int64_t r = 0; r < kInt4Rows; ++r)
    if (!scaleF8E4M3(rows.data + r * rows.stride + begin, &scale, cols, /*first=*/0, &values[r * cols], cols))
      return false;
  return packInt4(panel, StoredRows::of(values.data(), cols), cols, lane, out);
}

#if HWY_TARGET == HWY_SCALAR

HWY_NOINLINE bool packF8Rows(const Int4Panel &panel, const StoredRows &rows, int64_t cols, int64_t lane, std::byte *out,
                             const std::byte *next) {
  for (int64_t begin = 0, i = 0, end; begin < cols; begin = end, ++i) {
    end = std::min(cols, (i + 1) * rows.scaleCols - rows.first);
    std::byte *to = out + begin / panel.group * panel.groupBytes();
    if (!packF8Values(panel, rows, begin, end, rows.scales[i], lane, to))
      return false;
  }
  return true;
}

#else

/// Groups of 32 codes, and their halves.
using Codes = hn::CappedTag<uint8_t, 32>;
using HalfCodes = hn::FixedTag<uint8_t, 16>;

/// Magnitudes above signs: the largest of these belongs to the code of largest magnitude, the negative one of two.
template <typename V> HWY_INLINE V keysOf(V code) {
  const hn::DFromV<V> codes;
  const hn::RebindToSigned<decltype(codes)> ints;
  auto twice = hn::BitCast(ints, hn::Add(code, code));
  auto key = hn::IfNegativeThenElse(hn::BitCast(ints, code), hn::Add(twice, hn::Set(ints, 1)), twice);
  return hn::BitCast(codes, key);
}

/// In each block of 16 bytes the largest keys of 2^depth runs, the first of which is number `first`, one after the
/// other and repeated. `start(i)` is where run i of `size` bytes begins.
template <int depth, typename Start, typename Size>
HWY_INLINE auto largestKeys(const Start &start, int64_t first, Size size) {
  const Codes codes;
  if constexpr (depth == 0) {
    const uint8_t *run = start(first);
    auto most = keysOf(hn::LoadU(codes, run));
    for (auto i = static_cast<int64_t>(hn::Lanes(codes)); i < size; i += hn::Lanes(codes))
      most = hn::Max(most, keysOf(hn::LoadU(codes, run + i)));
    return most;
  } else {
    const hn::Repartition<hwy::UnsignedFromSize<1 << (depth - 1)>, Codes> keys;
    auto a = hn::BitCast(keys, largestKeys<depth - 1>(start, first, size));
    auto b = hn::BitCast(keys, largestKeys<depth - 1>(start, first + (1 << (depth - 1)), size));
    return hn::Max(hn::BitCast(codes, hn::InterleaveLower(keys, a, b)),
                   hn::BitCast(codes, hn::InterleaveUpper(keys, a, b)));
  }
}

/// Four rows of up to four groups, from column `begin` on, and how their codes are looked up.
struct F8Groups {
  static constexpr int64_t kCount = 4;
  int64_t begin = 0, end = 0; ///< columns
  float scale = 0;            ///< of the FP8 codes
  bool ordinary = false;      ///< else there is no table for one of them
  // By group, then row.
  /// Sixteen times the kind of ties, and the last four bits of the key of the extreme: its mantissa and sign.
  alignas(64) uint32_t tables[kCount * kInt4Rows];
  alignas(16) uint16_t scales[kCount * kInt4Rows]; ///< bits of the int4 scales
  alignas(16) uint8_t lowest[kCount * kInt4Rows];  ///< the key of the first entry's magnitude
};

/// Whether a float is a power of two, or nothing.
HWY_INLINE bool isPowerOfTwo(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return (bits & 0x007FFFFF) == 0;
}

/// Finds tables and scales by the keys of extremes.
HWY_INLINE void findTables(DType type, const uint8_t *keys, F8Groups &found) {
  const Floats floats;
  const hn::RebindToSigned<Words> ints;
  const HalfCodes codes;
  const auto lanes = static_cast<int64_t>(hn::Lanes(floats));
  const auto all = hn::Load(codes, keys);
  hn::Store(hn::Sub(hn::And(all, hn::Set(codes, 0xFE)), hn::Set(codes, 2 * (Int4OfF8::kEntries - 1))), codes,
            found.lowest);
  const auto outside = hn::Or(hn::Lt(all, hn::Set(codes, 2 * Int4OfF8::kSmallest)),
                              hn::Gt(all, hn::Set(codes, 2 * 0x7F - 1))); // which is no number
  found.ordinary = hn::AllFalse(codes, outside);

  // A tie is clear, and an f16 not subnormal.
  const bool exactScale = isPowerOfTwo(found.scale);
  const auto eighth = hn::Set(floats, found.scale * 0.125f);
  const auto normal = hn::Set(floats, type == DType::F16 ? 0x1p-14f : 0);
  for (int64_t i = 0; i < F8Groups::kCount * kInt4Rows; i += lanes) {
    const auto key = hn::PromoteTo(ints, hn::Load(hn::Rebind<uint8_t, Words>(), keys + i));
    // Exponent and mantissa go to where f32 has them, and 120 is added to the former, as no code is subnormal.
    const auto magnitude = hn::ShiftLeft<19>(hn::And(key, hn::Set(ints, 0xFE)));
    const auto value = hn::BitCast(floats, hn::Add(magnitude, hn::Set(ints, 120 << 23)));
    const auto exact = hn::Mul(value, eighth);
    auto [bits, rounded] = roundScale(type, exact);
    // A positive extreme makes the scale negative.
    const auto halves = hn::PromoteTo(Halves(), hn::Load(hn::Rebind<uint8_t, Words>(), keys + i));
    const auto sign = hn::AndNot(hn::ShiftLeft<15>(halves), hn::Set(Halves(), 0x8000));
    hn::Store(hn::Or(bits, sign), Halves(), found.scales + i);

    auto ties = hn::IfThenElse(hn::RebindMask(ints, hn::Lt(rounded, exact)), hn::Set(ints, 16 * Int4OfF8::Up),
                               hn::Set(ints, 16 * Int4OfF8::ByInverse));
    ties = hn::IfThenElse(hn::RebindMask(ints, hn::Gt(rounded, exact)), hn::Set(ints, 16 * Int4OfF8::Down), ties);
    hn::Store(hn::BitCast(Words(), hn::Or(ties, hn::And(key, hn::Set(ints, 15)))), Words(), found.tables + i);

    auto clear = hn::Gt(hn::Abs(hn::Sub(rounded, exact)), hn::Mul(exact, hn::Set(floats, 0x1p-22f)));
    if (exactScale)
      clear = hn::Or(clear, hn::Eq(rounded, exact));
    const auto finite = hn::And(hn::Ge(exact, normal), hn::Lt(rounded, hn::Set(floats, HUGE_VALF)));
    found.ordinary &= hn::AllTrue(floats, hn::And(clear, finite));
  }
}

#if HWY_TARGET == HWY_AVX3_DL

/// Int4 codes, plus 8, by table as `F8Groups` numbers them, and by how far a key is above the lowest.
struct F8Codes {
  alignas(64) uint8_t codes[16 * Int4OfF8::kTies][128] = {};
  constexpr F8Codes() {
    for (int table = 0; table < 16 * Int4OfF8::kTies; ++table)
      for (int i = 0; i < 2 * Int4OfF8::kEntries; ++i) {
        int distance = kInt4OfF8.distances[table / 16][table % 16 / 2][i / 2];
        // The extreme is at 0; what has the other sign ends at 15.
        codes[table][i] = static_cast<uint8_t>(table % 2 == i % 2 ? 8 - distance : std::min(8 + distance, 15));
      }
  }
};
constexpr F8Codes kF8Codes;

/// Looks up the codes of 32 columns of four rows in group `g` and puts them where `packInt4` does.
HWY_INLINE void placeF8(const uint8_t *data, int64_t stride, const F8Groups &groups, int64_t g, uint8_t *to,
                        int64_t width) {
  const uint32_t *table = groups.tables + g * kInt4Rows;
  const uint8_t *lowest = groups.lowest + g * kInt4Rows;
  // Two rows side by side.
  auto pair = [&](int64_t r) HWY_ATTR {
    const __mmask64 firstRow = 0x00000000FFFFFFFF, secondRow = ~firstRow;
    auto load = [&](int64_t row)
                    HWY_ATTR { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data + row * stride)); };
    __m512i code = _mm512_mask_broadcast_i64x4(_mm512_castsi256_si512(load(r)), 0xF0, load(r + 1));
    __m512i base = _mm512_mask_set1_epi8(_mm512_set1_epi8(lowest[r]), secondRow, lowest[r + 1]);
    __m512i twice = _mm512_add_epi8(code, code);
    __m512i key = _mm512_mask_add_epi8(twice, _mm512_movepi8_mask(code), twice, _mm512_set1_epi8(1));
    __m512i place = _mm512_subs_epu8(key, base);
    auto find = [&](__m512i places, __mmask64 where, uint32_t number) HWY_ATTR {
      const uint8_t *codes = kF8Codes.codes[number];
      return _mm512_mask2_permutex2var_epi8(_mm512_load_si512(codes), places, where, _mm512_load_si512(codes + 64));
    };
    return find(find(place, firstRow, table[r]), secondRow, table[r + 1]);
  };
  // Words of four columns: those of the first 16 columns, in order of columns, then rows; and of the others.
  const __m512i order = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
  __m512i ab = pair(0), cd = pair(2);
  __m512i low = _mm512_permutex2var_epi32(ab, order, cd);
  __m512i high = _mm512_permutex2var_epi32(ab, _mm512_add_epi32(order, _mm512_set1_epi32(4)), cd);
  __m512i pairs = _mm512_or_si512(low, _mm512_slli_epi16(high, 4));
  auto store = [&](int64_t q, __m128i words)
                   HWY_ATTR { _mm_storeu_si128(reinterpret_cast<__m128i *>(to + q * 4 * width), words); };
  store(0, _mm512_castsi512_si128(pairs));
  store(1, _mm512_extracti32x4_epi32(pairs, 1));
  store(2, _mm512_extracti32x4_epi32(pairs, 2));
  store(3, _mm512_extracti32x4_epi32(pairs, 3));
}

#else

/// The int4 codes, plus 8, of 32 FP8 codes: in each byte that of column i, and above it that of column i + 16.
template <typename D> HWY_INLINE auto pairsOfF8(D codes, const uint8_t *data, uint32_t table, uint8_t lowest) {
  const hn::RebindToSigned<D> ints;
  const hn::Repartition<uint16_t, HalfCodes> halves;
  const uint8_t *distances = kInt4OfF8.distances[table / 16][table % 16 / 2];
  const auto extreme = hn::Set(codes, static_cast<uint8_t>(table % 2 * 0x80)); // its sign
  auto convert = [&](const uint8_t *at) HWY_ATTR {
    auto code = hn::LoadU(codes, at);
    auto magnitude = hn::And(code, hn::Set(codes, 0x7F));
    auto place = hn::SaturatedSub(magnitude, hn::Set(codes, static_cast<uint8_t>(lowest / 2)));
    auto part = [&](int i) HWY_ATTR {
      auto low = hn::And(place, hn::Set(codes, 15));
      return hn::BitCast(ints, hn::TableLookupBytes(hn::LoadDup128(codes, distances + 16 * i), low));
    };
    static_assert(Int4OfF8::kEntries == 48);
    auto number = hn::BitCast(ints, place);
    auto distance = hn::IfThenElse(hn::Gt(number, hn::Set(ints, 15)), part(1), part(0));
    distance = hn::IfThenElse(hn::Gt(number, hn::Set(ints, 31)), part(2), distance);
    // The extreme is at 0; what has the other sign ends at 15.
    auto eight = hn::Set(ints, 8);
    auto other = hn::Min(hn::Add(eight, distance), hn::Set(ints, 15));
    auto isOther = hn::BitCast(ints, hn::Xor(code, extreme));
    return hn::BitCast(codes, hn::IfNegativeThenElse(isOther, other, hn::Sub(eight, distance)));
  };
  auto join = [&](auto low, auto high) HWY_ATTR {
    return hn::BitCast(hn::Repartition<uint32_t, HalfCodes>(),
                       hn::Or(hn::BitCast(halves, low), hn::ShiftLeft<4>(hn::BitCast(halves, high))));
  };
  if constexpr (hn::MaxLanes(codes) == 32) {
    auto all = convert(data);
    return join(hn::LowerHalf(HalfCodes(), all), hn::UpperHalf(HalfCodes(), all));
  } else {
    return join(convert(data), convert(data + 16));
  }
}

/// Puts 32 columns of four rows side by side; each word holds four columns of one row.
template <typename V> HWY_INLINE void placeRows(V a, V b, V c, V d, uint8_t *to, int64_t width) {
  const hn::Repartition<uint32_t, HalfCodes> words;
  const hn::Repartition<uint64_t, HalfCodes> longs;
  auto store = [&](int64_t q, auto ab, auto cd) HWY_ATTR {
    auto low = hn::InterleaveLower(longs, hn::BitCast(longs, ab), hn::BitCast(longs, cd));
    auto high = hn::InterleaveUpper(longs, hn::BitCast(longs, ab), hn::BitCast(longs, cd));
    hn::StoreU(hn::BitCast(HalfCodes(), low), HalfCodes(), to + q * 4 * width);
    hn::StoreU(hn::BitCast(HalfCodes(), high), HalfCodes(), to + (q + 1) * 4 * width);
  };
  store(0, hn::InterleaveLower(words, a, b), hn::InterleaveLower(words, c, d));
  store(2, hn::InterleaveUpper(words, a, b), hn::InterleaveUpper(words, c, d));
}

/// Looks up the codes of 32 columns of four rows in group `g` and puts them where `packInt4` does.
HWY_INLINE void placeF8(const uint8_t *data, int64_t stride, const F8Groups &groups, int64_t g, uint8_t *to,
                        int64_t width) {
  auto pairs = [&](int64_t r) HWY_ATTR {
    return pairsOfF8(Codes(), data + r * stride, groups.tables[g * kInt4Rows + r], groups.lowest[g * kInt4Rows + r]);
  };
  placeRows(pairs(0), pairs(1), pairs(2), pairs(3), to, width);
}

#endif

/// Finds out about the extremes of the groups in `found`.
HWY_INLINE void findGroups(const Int4Panel &panel, const StoredRows &rows, F8Groups &found) {
  constexpr int64_t runs = F8Groups::kCount * kInt4Rows;
  const HalfCodes half;
  const int64_t group = panel.group, begin = found.begin, end = found.end, stride = rows.stride;
  const auto *data = reinterpret_cast<const uint8_t *>(rows.data);
  alignas(64) uint8_t keys[2 * runs];
  if (group == 32 && end - begin == F8Groups::kCount * group) {
    auto start = [&](int64_t run) HWY_ATTR { return data + run % kInt4Rows * stride + begin + run / kInt4Rows * 32; };
    hn::Store(largestKeys<4>(start, 0, std::integral_constant<int64_t, 32>()), Codes(), keys);
  } else {
    const int64_t last = end - group; // stands in for groups that are not there
    auto start = [&](int64_t run) HWY_ATTR {
      return data + run % kInt4Rows * stride + std::min(begin + run / kInt4Rows * group, last);
    };
    hn::Store(largestKeys<4>(start, 0, group), Codes(), keys);
  }
  if (hn::Lanes(Codes()) > runs)
    hn::Store(hn::Max(hn::Load(half, keys), hn::Load(half, keys + runs)), half, keys);
  findTables(panel.scale, keys, found);
}

/// Puts the codes and scales of these groups into panels that begin at `out`.
template <typename Group>
HWY_INLINE void placeGroups(const Int4Panel &panel, const StoredRows &rows, const F8Groups &groups, Group group,
                            int64_t lane, std::byte *out, const std::byte *next) {
  const int64_t width = panel.width, groupBytes = panel.groupBytes();
  const auto *data = reinterpret_cast<const uint8_t *>(rows.data);
  for (int64_t col = groups.begin, g = 0; col < groups.end; ++g) {
    std::memcpy(out + 2 * lane, groups.scales + g * kInt4Rows, sizeof(uint16_t) * kInt4Rows);
    auto *to = reinterpret_cast<uint8_t *>(out) + 2 * width + 4 * lane;
    for (const int64_t end = col + group; col < end; col += 32, to += 16 * width) {
      readAhead(next, rows.stride, col, col + 32);
      placeF8(data + col, rows.stride, groups, g, to, width);
    }
    out += groupBytes;
  }
}

HWY_NOINLINE bool packF8Rows(const Int4Panel &panel, const StoredRows &rows, int64_t cols, int64_t lane, std::byte *out,
                             const std::byte *next) {
  static_assert(kInt4Rows == 4);
  // What is looked up next is found before these groups are placed, so that the one need not wait for the other.
  F8Groups found[2], *current = nullptr;
  for (int64_t begin = 0, scale = 0;;) {
    F8Groups *following = nullptr;
    if (begin < cols) {
      following = current == found ? found + 1 : found;
      const int64_t scaleEnd = std::min(cols, (scale + 1) * rows.scaleCols - rows.first);
      following->begin = begin;
      following->end = begin = std::min(scaleEnd, begin + F8Groups::kCount * panel.group);
      following->scale = rows.scales[scale];
      scale += begin == scaleEnd;
      findGroups(panel, rows, *following);
    }
    if (current) {
      if (!current->ordinary) {
        if (!packF8Values(panel, rows, current->begin, current->end, current->scale, lane, out))
          return false;
      } else if (panel.group == 32) {
        placeGroups(panel, rows, *current, std::integral_constant<int64_t, 32>(), lane, out, next);
      } else {
        placeGroups(panel, rows, *current, panel.group, lane, out, next);
      }
      out += (current->end - current->begin) / panel.group * panel.groupBytes();
    }
    if (!following)
      return true;
    current = following;
  }
}

#endif // HWY_SCALAR

} // namespace moec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moec {

HWY_EXPORT(packF8Rows);

bool packInt4OfF8(const Int4Panel &panel, const StoredRows &rows, int64_t cols, int64_t lane, std::byte *out,
                  const std::byte *next) {
  return HWY_DYNAMIC_DISPATCH(packF8Rows)(panel, rows, cols, lane, out, next);
}

} // namespace moec
#endif // HWY_ONCE
