// SPDX-License-Identifier: Apache-2.0
// The functions of a logit, on vectors: no branch, no table, no call. Polynomials are least-maximum fits of the relative error.
#pragma once

#include "cpu/vector.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

// s = scale * p, rounded before anything is subtracted from it. A fused multiply-subtract would be exact where a log-sum-exp is rounded: at
// logits of 1e3 the weight of a row's largest logit, e^(s - LSE) = 1, would then be wrong by 3e-5 instead of right.
CLIPKIT_INLINE Floats logit(Floats product, Floats scale) {
  Floats s = product * scale;
#if defined(__x86_64__)
  asm("" : "+v"(s));  // costs nothing, and is no multiplication to fuse with
#elif defined(__aarch64__)
  asm("" : "+w"(s));
#endif
  return s;
}

CLIPKIT_INLINE Floats logit(Floats product, float scale) { return logit(product, all(scale)); }

// exp(x) within 2 ulp; 0 below -87.33 (no denormals), infinity above 88.72, NaN for NaN. kMayOverflow = false: x is at most 88.
// x = n ln2 + f with |f| <= ln2/2, and e^f = 1 + f + f^2 q(f), q of degree 4 (relative error 3e-9).
template <bool kMayOverflow = true>
CLIPKIT_INLINE Floats exponential(Floats x) {
  constexpr float kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // few bits: n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  constexpr float kLowest = -87.33f;
  constexpr float kHighest = 88.72f;

  const Ints flushed = x < kLowest;
  if (kMayOverflow) x = smaller(all(kHighest), x);
  const Floats shifted = x * kLog2e + kRound;
  const Floats n = shifted - kRound;
  const Floats f = (x - n * kLn2High) - n * kLn2Low;
  Floats p = all(1.381453999e-3f);
  p = p * f + 8.368745246e-3f;
  p = p * f + 4.166839080e-2f;
  p = p * f + 1.666652040e-1f;
  p = p * f + 4.999999343e-1f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  const Words power = ((Words)shifted << 23) + 0x3F800000u;  // 2^n; anything for what is flushed
  return flushed ? Floats{} : p * (Floats)power;
}

// 1/x for x in [1, 1e30], within 2 ulp.
CLIPKIT_INLINE Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
  const Floats guess = _mm512_maskz_rcp14_ps(0xFFFF, x);  // and one step of Newton's: a division has half the throughput
  return guess + guess * (1.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

struct SoftplusSigmoid {
  Floats softplus;
  Floats sigmoid;
};

// log(1 + e^t) and 1 / (1 + e^-t) from one exponential and one reciprocal, both with their relative accuracy at either end.
// With u = e^-|t| and z = u / (2 + u), log(1 + u) = z g(z^2), g of degree 4 (relative error 4e-9).
CLIPKIT_INLINE SoftplusSigmoid softplus_and_sigmoid(Floats t) {
  const Ints positive = t > 0.0f;
  const Floats u = exponential<false>(positive ? -t : t);
  const Floats both = reciprocal((1.0f + u) * (2.0f + u));
  const Floats z = u * (1.0f + u) * both;
  const Floats w = z * z;
  Floats g = all(2.817833500e-1f);
  g = g * w + 2.796060300e-1f;
  g = g * w + 4.002491000e-1f;
  g = g * w + 6.666631500e-1f;
  g = g * w + 2.00000001f;
  const Floats away = (2.0f + u) * both;  // 1 / (1 + u)
  return {(positive ? t : Floats{}) + z * g, (positive ? all(1.0f) : u) * away};
}

// e^r - 1 - r for |r| < 1/2, where the exponential would leave no digits of it: r^2 q(r), q of degree 5 (relative error 2.4e-8).
CLIPKIT_INLINE Floats excess(Floats r) {
  Floats q = all(1.98756293e-4f);
  q = q * r + 1.39819976e-3f;
  q = q * r + 8.33345217e-3f;
  q = q * r + 4.16657959e-2f;
  q = q * r + 1.66666655e-1f;
  q = q * r + 5.00000012e-1f;
  return q * r * r;
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
