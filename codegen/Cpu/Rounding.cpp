// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/Rounding.h"

#include "codegen/Cpu/Emitters.h"
#include "dialects/Formats/CodedEntry.h"
#include "dialects/Formats/Groups.h"

#include <limits>

namespace moec::cpu {

namespace {

/// `x` to the nearest of 2^(e - 3) multiples within its binade 2^e, as e4m3 has them; ties to even, saturating.
Val roundToF8E4M3(KernelBuilder &b, Val x) {
  Val limit = x.like(GroupFormat{CodeKind::F8E4M3}.most());
  x = b.max(b.min(x, limit), 0.0 - limit);
  // Below the least normal number steps are 2^-9: those of f32 around 1.5 * 2^14.
  Val small = (x + 0x1.8p14) - 0x1.8p14;
  Val bits = b.bitcast(x, b.i32);
  Val rounded = (bits + ((bits >> 20) & 1) + 0x7FFFF) & static_cast<int32_t>(0xFFF00000);
  Val isNormal = (bits & 0x7FFFFFFF) >= 0x3C800000; // 2^-6
  return b.select(isNormal, b.bitcast(rounded, b.f32), small);
}

/// The codes (i8) of the same, for numbers that are nearer to one of 448 or less than to 480: the sign of zeros and of
/// what becomes zero is kept.
Val codesOfF8E4M3(KernelBuilder &b, Val x) {
  Val bits = b.bitcast(x, b.i32);
  Val magnitude = bits & 0x7FFFFFFF;
  // An exponent that counts from 2^-7 in place of 2^-127; small numbers are counted in steps of 2^-9, as above.
  Val normal = ((magnitude + ((magnitude >> 20) & 1) + 0x7FFFF) >> 20) - (120 << 3);
  Val small = b.bitcast(b.bitcast(magnitude, b.f32) + 0x1.8p14, b.i32) - 0x46C00000;
  return b.convert(b.select(magnitude >= 0x3C800000, normal, small) | ((bits >> 24) & 0x80), b.i8);
}

/// The nearest integers (i32) to `x * by`, ties to even; |x * by| < 2^22. One near 1.5 * 2^23 has its last bits where
/// f32 has them.
Val codesOfInt8(KernelBuilder &b, Val x, Val by) {
  return b.bitcast(b.fma(x, by, x.like(0x1.8p23)), b.i32) - 0x4B400000;
}

/// `x` to the nearest integer, ties to even; |x| < 2^22.
Val roundScaled(KernelBuilder &b, Val x, Val by) { return b.fma(x, by, x.like(0x1.8p23)) - 0x1.8p23; }

/// The greatest magnitude of `width` numbers.
Val greatestOf(KernelBuilder &b, Ptr from, int64_t width) {
  auto magnitude = [&](Val v) { return b.max(v, 0.0 - v); };
  int64_t whole = width / kLanes * kLanes;
  Val most = b.loop(
      b.cI64(0), b.cI64(whole), kLanes, b.constant(b.vec(b.f32), 0.0),
      [&](Val i, llvm::ArrayRef<Val> so) -> Vals { return {b.max(magnitude((from + i).load(kLanes)), so[0])}; })[0];
  if (whole < width)
    most = b.max(b.select(b.firstLanes(width - whole), magnitude((from + whole).load(kLanes)), most.like(0.0)), most);
  return b.maxLanes(most);
}

/// Calls `body` for each `group` of `width` columns, the last of which may be smaller.
void forGroups(KernelBuilder &b, int64_t width, int64_t group,
               llvm::function_ref<void(Val index, int64_t columns)> body) {
  int64_t whole = width / group;
  b.loop(b.cI64(0), b.cI64(whole), 1, [&](Val index) { body(index, group); });
  if (int64_t rest = width % group)
    body(b.cI64(whole), rest);
}

struct Scale {
  Val scale, inverse; ///< the inverse is 0 where it would not be finite
};

/// Of numbers whose greatest magnitude is `most`.
Scale scaleOf(KernelBuilder &b, Val most, CodeKind codes) {
  Val scale = most / GroupFormat{codes}.most(), inverse = 1.0 / scale;
  return {scale, b.select(inverse <= std::numeric_limits<float>::max(), inverse, b.cF32(0))};
}

/// The greatest magnitude of `width` numbers by its bits (i32), of which those of NaN and infinity are the greatest.
Val greatestBitsOf(KernelBuilder &b, Ptr from, int64_t width) {
  Val most = b.constant(b.vec(b.i32), int64_t(0));
  for (int64_t i = 0; i < width; i += kLanes) {
    Val bits = b.bitcast((from + i).load(kLanes), b.i32) & 0x7FFFFFFF;
    most = b.max(i + kLanes <= width ? bits : b.select(b.firstLanes(width - i), bits, bits.like(0)), most);
  }
  return b.maxIntLanes(most);
}

} // namespace

void storeRecords(KernelBuilder &b, Ptr from, Ptr records, int64_t width, int64_t scaleCols, int64_t offset) {
  constexpr int64_t group = QuantizeRowsSpec::group;
  static_assert(group == 2 * kLanes);
  forGroups(b, width, scaleCols, [&](Val index, int64_t columns) {
    Ptr row = from + index * scaleCols, to = records + index * QuantizeRowsSpec::rowBytes(scaleCols);
    Scale scale = scaleOf(b, greatestOf(b, row, columns), CodeKind::Int8);
    b.loop(b.cI64(0), b.cI64(columns / group), 1, [&](Val index) {
      Ptr record = to + index * QuantizeRowsSpec::recordBytes;
      Val sum;
      for (int64_t v = 0; v < 2; ++v) {
        Val value = (row + (index * group + v * kLanes)).load(kLanes);
        Val code = codesOfInt8(b, value, scale.inverse);
        (record + v * kLanes).store(b.convert(code, b.i8));
        sum = v ? sum + code : code;
      }
      Ptr{(record + QuantizeRowsSpec::scaleAt).base, b.f32}.store(scale.scale);
      Ptr{(record + QuantizeRowsSpec::sumAt).base, b.i32}.store(b.sumLanes(sum) * -offset);
    });
  });
}

void storeBf16(KernelBuilder &b, Ptr from, Ptr to, int64_t width) {
  b.vectors(width, [&](Val i, Val mask) { (to + i).store(b.toBf16((from + i).load(kLanes)), mask); });
}

void storeLatentCodes(KernelBuilder &b, Ptr from, int64_t width, CacheCodes kind, Ptr codes, Ptr scales) {
  forGroups(b, width, CodedEntry::group, [&](Val index, int64_t columns) {
    Val begin = index * CodedEntry::group;
    Val bits = greatestBitsOf(b, from + begin, columns);
    Val numbers = bits < 0x7F800000; // all of them
    Scale found = scaleOf(b, b.bitcast(bits, b.f32), kind == CacheCodes::Int8 ? CodeKind::Int8 : CodeKind::F8E4M3);
    (scales + index).store(b.select(numbers, found.scale, b.cF32(std::numeric_limits<double>::quiet_NaN())));
    Val inverse = b.splat(found.inverse);
    b.vectors(columns, [&](Val i, Val mask) {
      Val x = (from + begin + i).load(kLanes);
      Val code = kind == CacheCodes::Int8 ? b.convert(codesOfInt8(b, x, inverse), b.i8) : codesOfF8E4M3(b, x * inverse);
      (codes + begin + i).store(b.select(b.splat(numbers), code, code.like(0)), mask);
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const FakeQuantizeSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr x = b.arg(0, b.f32), out = b.arg(1, b.f32);
    auto roundGroup = [&](Ptr from, Ptr to, int64_t width) {
      Scale found = scaleOf(b, greatestOf(b, from, width), spec.codes);
      Val inverse = b.splat(found.inverse), scale = b.splat(found.scale);
      b.vectors(width, [&](Val i, Val mask) {
        Val v = (from + i).load(kLanes);
        Val code = spec.codes == CodeKind::Int8 ? roundScaled(b, v, inverse) : roundToF8E4M3(b, v * inverse);
        (to + i).store(code * scale, mask);
      });
    };
    b.tasks([&](Val t) {
      Ptr from = x + t * spec.xStride, to = out + t * spec.outStride;
      forGroups(b, spec.width, spec.group, [&](Val index, int64_t columns) {
        Val begin = index * spec.group;
        roundGroup(from + begin, to + begin, columns);
      });
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const QuantizeRowsSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr x = b.arg(0, b.f32), out = b.arg(1, b.i8);
    b.tasks([&](Val t) {
      storeRecords(b, x + t * spec.xStride, out + t * spec.outStride, spec.width, spec.scaleCols, spec.offset);
    });
  });
}

void emit(KernelBuilder &b, llvm::StringRef symbol, const CastRowsSpec &spec, const Tiles &) {
  b.kernel(symbol, [&] {
    Ptr x = b.arg(0, b.f32), out = b.arg(1, b.storage(spec.to));
    b.tasks([&](Val t) {
      Ptr from = x + t * spec.xStride, to = out + t * spec.outStride;
      if (spec.to == DType::BF16)
        return storeBf16(b, from, to, spec.width);
      b.vectors(spec.width, [&](Val i, Val mask) {
        Val bits = b.toBf16((from + i).load(kLanes));
        (to + i).store(b.bitcast(b.zeroExtend(bits, b.i32) << 16, b.f32), mask);
      });
    });
  });
}

} // namespace moec::cpu
