// SPDX-License-Identifier: Apache-2.0
// Numbers of a line as they lie in memory, fp32 or bf16, on their way to and from vectors of fp32.
#pragma once

#include "cpu/vector.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

struct Bf16 {
  uint16_t bits;
};

// The nearest bf16 in the upper half of each lane, ties to even; a NaN stays one.
CLIPKIT_INLINE Words rounded(Floats v) {
  const Words bits = (Words)v;
  const Words nearest = bits + 0x7FFFu + ((bits >> 16) & 1u);
  return (Words)(v != v ? (Ints)(bits | 0x400000u) : (Ints)nearest);
}

template <typename Lanes>
CLIPKIT_INLINE Floats load(Lanes lanes, const float* from) { return lanes.load(from); }

template <typename Lanes>
CLIPKIT_INLINE void store(Lanes lanes, float* to, Floats v) { lanes.store(to, v); }

#if defined(__AVX512F__)
CLIPKIT_INLINE Floats widened(__m256i halves) { return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16); }
CLIPKIT_INLINE __m256i narrowed(Floats v) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)rounded(v), 16)); }

CLIPKIT_INLINE Floats load(Whole, const Bf16* from) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
CLIPKIT_INLINE Floats load(Part lanes, const Bf16* from) { return widened(_mm256_maskz_loadu_epi16(lanes.mask(), from)); }
CLIPKIT_INLINE void store(Whole, Bf16* to, Floats v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed(v)); }
CLIPKIT_INLINE void store(Part lanes, Bf16* to, Floats v) { _mm256_mask_storeu_epi16(to, lanes.mask(), narrowed(v)); }
#else
CLIPKIT_INLINE int existing(Whole) { return kLanes; }
CLIPKIT_INLINE int existing(Part lanes) { return lanes.count; }

template <typename Lanes>
CLIPKIT_INLINE Floats load(Lanes lanes, const Bf16* from) {
  Words bits = {};
  for (int lane = 0; lane < kLanes; ++lane)
    if (lane < existing(lanes)) bits[lane] = static_cast<uint32_t>(from[lane].bits) << 16;
  return (Floats)bits;
}

template <typename Lanes>
CLIPKIT_INLINE void store(Lanes lanes, Bf16* to, Floats v) {
  const Words bits = rounded(v);
  for (int lane = 0; lane < kLanes; ++lane)
    if (lane < existing(lanes)) to[lane].bits = static_cast<uint16_t>(bits[lane] >> 16);
}
#endif

// What of a value is left when it has been stored and loaded again.
CLIPKIT_INLINE Floats as_stored(const float*, Floats v) { return v; }
CLIPKIT_INLINE Floats as_stored(const Bf16*, Floats v) { return (Floats)(rounded(v) & 0xFFFF0000u); }

// Each lane's neighbour in its pair (2m, 2m + 1).
CLIPKIT_INLINE Floats swapped_pairs(Floats v) {
#if defined(__AVX512F__)
  return _mm512_maskz_permute_ps(0xFFFF, v, 0xB1);
#elif defined(__AVX2__)
  return _mm256_permute_ps(v, 0xB1);
#else
  Floats swapped;
  for (int lane = 0; lane < kLanes; ++lane) swapped[lane] = v[lane ^ 1];
  return swapped;
#endif
}

// Line i of lines of such elements.
template <typename Element, typename Lines>
CLIPKIT_INLINE Element* line_of(const Lines& lines, int64_t i) { return static_cast<Element*>(lines.first) + i * lines.stride; }

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
