// SPDX-License-Identifier: Apache-2.0
// An exponential that a compiler can vectorise: no branch, no table, no call.
#pragma once

#include <cstdint>
#include <cstring>

// One copy of a hot function per instruction set, chosen when the library is loaded: speed without -march=native, one binary for all CPUs.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define CLIPKIT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLIPKIT_CLONES
#endif

#if defined(__GNUC__)
#define CLIPKIT_INLINE inline __attribute__((always_inline))
#else
#define CLIPKIT_INLINE inline
#endif

namespace clipkit {

// exp(x) in fp32, within 2 ulp; 0 below -87.3 (no denormals), infinity above 88.3, NaN for NaN.
// x = n ln2 + f with |f| <= ln2/2, then exp(f) = 1 + f + f^2 q(f); q is a least-maximum fit of degree 4 (relative error 3e-9).
CLIPKIT_INLINE float exp_fast(float x) {
  constexpr float kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // few bits: n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  constexpr float kLowest = -87.33f;
  constexpr float kHighest = 88.72f;

  float clamped = x < kLowest ? kLowest : x;
  clamped = clamped > kHighest ? kHighest : clamped;
  const float shifted = clamped * kLog2e + kRound;
  const float n = shifted - kRound;
  const float f = (clamped - n * kLn2High) - n * kLn2Low;
  float q = 1.381453999e-3f;
  q = q * f + 8.368745246e-3f;
  q = q * f + 4.166839080e-2f;
  q = q * f + 1.666652040e-1f;
  q = q * f + 4.999999343e-1f;
  const float mantissa = (q * f) * f + f + 1.0f;

  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3F800000u;  // 2^n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  const float value = mantissa * power;
  return x < kLowest ? 0.0f : value;
}

}  // namespace clipkit
