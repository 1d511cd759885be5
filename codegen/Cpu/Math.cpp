// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "codegen/Cpu/Math.h"

namespace moec::cpu {

/// 1.5 * 2^(mantissa bits): adding it rounds a small float to an integer, which then is the low
/// bits of the sum. Unlike a conversion that is defined for NaN too.
static constexpr double kRound32 = 0x1.8p23;
static constexpr double kRound64 = 0x1.8p52;

/// Coefficients ascending.
static Val horner(KernelBuilder &b, Val x, std::initializer_list<double> coefficients) {
  Val sum;
  for (auto it = std::rbegin(coefficients); it != std::rend(coefficients); ++it)
    sum = sum.value ? b.fma(sum, x, x.like(*it)) : x.like(*it);
  return sum;
}

Val exp(KernelBuilder &b, Val x) {
  // Beyond these the result is 0 or inf anyway. `min` and `max` keep a NaN in their second operand.
  x = b.max(x.like(-104.0), x);
  x = b.min(x.like(89.0), x);
  // x = n ln2 + r, |r| <= ln2 / 2, with ln2 in two parts.
  Val rounded = b.fma(x, x.like(0x1.715476p+0), x.like(kRound32));
  Val n = rounded - kRound32;
  Val r = b.fma(n, n.like(-0x1.62e4p-1), x);
  r = b.fma(n, n.like(-0x1.7f7d1cp-20), r);
  // e^r = 1 + r + r^2 q(r), q of least relative error (3.1e-9 before rounding).
  Val q = horner(b, r, {0x1.fffffcp-2, 0x1.555492p-3, 0x1.5558f2p-5, 0x1.123a2p-7, 0x1.6a23dp-10});
  Val p = b.fma(r * r, q, r) + 1.0;
  // 2^n in two factors, each a normal number, so that results run into subnormals and inf by themselves.
  Val exponent = b.bitcast(rounded, b.i32) - b.bitcast(x.like(kRound32), b.i32);
  Val half = exponent >> 1;
  auto power = [&](Val e) { return b.bitcast((e + 127) << 23, b.f32); };
  return p * power(half) * power(exponent - half);
}

Val silu(KernelBuilder &b, Val x) { return x / (exp(b, x.like(0.0) - x) + 1.0); }

Val sigmoid(KernelBuilder &b, Val x) { return x.like(1.0) / (exp(b, x.like(0.0) - x) + 1.0); }

SinCos sinCos(KernelBuilder &b, Val angle) {
  Val a = b.convert(angle, b.f64);
  // a = n pi/2 + r, with pi/2 in two parts: the product with n is exact within fma, and n < 2^24
  // leaves an error near 2^-80.
  Val rounded = b.fma(a, a.like(0x1.45f306dc9c883p-1), a.like(kRound64));
  Val n = rounded - kRound64;
  Val r = b.fma(n, n.like(-0x1.921fb54442d18p+0), a);
  r = b.fma(n, n.like(-0x1.1a62633145c07p-54), r);
  // Taylor, whose rest is below 2^-43 for |r| <= pi/4.
  Val r2 = r * r;
  Val sinPoly = horner(b, r2, {-1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800});
  Val s = b.fma(r * r2, sinPoly, r);
  Val cosPoly = horner(b, r2, {-1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600});
  Val c = b.fma(r2, cosPoly, r2.like(1.0));
  // Quarter turns: odd ones swap the two, and signs follow the quadrant.
  Val quarter = b.bitcast(rounded, b.i64);
  Val swap = (quarter & 1) == 1;
  auto withSign = [&](Val v, Val negative) {
    Val sign = (negative & 2) << 62;
    return b.bitcast(b.bitcast(v, b.i64) ^ sign, b.f64);
  };
  return {withSign(b.select(swap, c, s), quarter), withSign(b.select(swap, s, c), quarter + 1)};
}

} // namespace moec::cpu
