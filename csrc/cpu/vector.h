// SPDX-License-Identifier: Apache-2.0
// Vectors of fp32 as wide as the instruction set that this file is compiled for. Included by the tile_*.cpp files, each of which names a
// namespace of its own (CLIPKIT_ISA): no code compiled for one instruction set may be shared with another.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define CLIPKIT_INLINE inline __attribute__((always_inline))
#define CLIPKIT_LAMBDA __attribute__((always_inline))

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE2, NEON; a compiler without either makes scalars of it
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));  // masks: -1 where true
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));  // bits: sums wrap around

CLIPKIT_INLINE Floats all(float value) { return value - Floats{}; }

// The larger and the smaller of two, b where one is NaN. Compilers must not make the one instruction of the comparison by themselves.
#if defined(__AVX512F__)
CLIPKIT_INLINE Floats larger(Floats a, Floats b) { return _mm512_maskz_max_ps(0xFFFF, a, b); }
CLIPKIT_INLINE Floats smaller(Floats a, Floats b) { return _mm512_maskz_min_ps(0xFFFF, a, b); }
#elif defined(__AVX2__)
CLIPKIT_INLINE Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
CLIPKIT_INLINE Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
#else
CLIPKIT_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
CLIPKIT_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
#endif

CLIPKIT_INLINE Floats square_root(Floats v) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_ps(0xFFFF, v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#else
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = __builtin_sqrtf(v[lane]);
  return v;
#endif
}

CLIPKIT_INLINE float sum(Floats v) {
  float total = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) total += v[lane];
  return total;
}

CLIPKIT_INLINE float largest(Floats v) {
  float best = v[0];
  for (int lane = 1; lane < kLanes; ++lane) best = v[lane] > best ? v[lane] : best;
  return best;
}

CLIPKIT_INLINE bool any(Ints mask) {
  int32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
  return found != 0;
}

// A whole vector of a line.
struct Whole {
  CLIPKIT_INLINE Floats load(const float* from) const {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  CLIPKIT_INLINE void store(float* to, Floats v) const { std::memcpy(to, &v, sizeof v); }
  CLIPKIT_INLINE Floats keep(Floats v) const { return v; }
  CLIPKIT_INLINE Floats beyond(float) const { return Floats{}; }
};

// The last vector of a line, of which `count` lanes exist: nothing else is read or written, `keep` makes the others zero and `beyond`
// gives them a value, zero to those that exist.
struct Part {
  int count;
#if defined(__AVX512F__)
  CLIPKIT_INLINE __mmask16 mask() const { return static_cast<__mmask16>((1u << count) - 1u); }
  CLIPKIT_INLINE Floats load(const float* from) const { return _mm512_maskz_loadu_ps(mask(), from); }
  CLIPKIT_INLINE void store(float* to, Floats v) const { _mm512_mask_storeu_ps(to, mask(), v); }
  CLIPKIT_INLINE Floats keep(Floats v) const { return _mm512_maskz_mov_ps(mask(), v); }
  CLIPKIT_INLINE Floats beyond(float value) const { return _mm512_maskz_mov_ps(static_cast<__mmask16>(~mask()), all(value)); }
#else
  CLIPKIT_INLINE Floats load(const float* from) const {
    Floats v = {};
    for (int lane = 0; lane < kLanes; ++lane)
      if (lane < count) v[lane] = from[lane];
    return v;
  }
  CLIPKIT_INLINE void store(float* to, Floats v) const {
    for (int lane = 0; lane < kLanes; ++lane)
      if (lane < count) to[lane] = v[lane];
  }
  CLIPKIT_INLINE Floats keep(Floats v) const {
    for (int lane = 0; lane < kLanes; ++lane)
      if (lane >= count) v[lane] = 0.0f;
    return v;
  }
  CLIPKIT_INLINE Floats beyond(float value) const {
    Floats v = {};
    for (int lane = 0; lane < kLanes; ++lane)
      if (lane >= count) v[lane] = value;
    return v;
  }
#endif
};

// body(j, Whole or Part) for the vectors of a line.
template <typename Body>
CLIPKIT_INLINE void along(int64_t columns, Body body) {
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) body(j, Whole{});
  if (j < columns) body(j, Part{static_cast<int>(columns - j)});
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
