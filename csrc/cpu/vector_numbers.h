// SPDX-License-Identifier: Apache-2.0
// Vectors of fp32 from and to numbers of 16 bits in memory, rounded to nearest, ties to even: cuda/numbers.h for all lanes at once.
#pragma once

#include "cpu/vector.h"
#include "cuda/numbers.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));

CLIPKIT_INLINE int lanes_of(Whole) { return kLanes; }
CLIPKIT_INLINE int lanes_of(Part part) { return part.count; }

template <typename Lanes>
CLIPKIT_INLINE Words load_words(Lanes lanes, const void* from) {
  Shorts bits = {};
  std::memcpy(&bits, from, sizeof(uint16_t) * lanes_of(lanes));
  return __builtin_convertvector(bits, Words);
}

template <typename Lanes>
CLIPKIT_INLINE void store_words(Lanes lanes, void* to, Words words) {
  const Shorts bits = __builtin_convertvector(words, Shorts);
  std::memcpy(to, &bits, sizeof(uint16_t) * lanes_of(lanes));
}

template <typename Lanes>
CLIPKIT_INLINE Floats load_numbers(Lanes lanes, const float* from) { return lanes.load(from); }

template <typename Lanes>
CLIPKIT_INLINE Floats load_numbers(Lanes lanes, const Bfloat16* from) { return (Floats)(load_words(lanes, from) << 16); }

template <typename Lanes>
CLIPKIT_INLINE Floats load_numbers(Lanes lanes, const Half* from) {
  const Words bits = load_words(lanes, from), magnitude = (bits & 0x7fffu) << 13;
  const Words smallest_normal = Words{} + (113u << 23);  // 2^-14
  const Words denormal = (Words)((Floats)(smallest_normal | magnitude) - (Floats)smallest_normal);
  const Words normal = magnitude < (31u << 23) ? magnitude + (112u << 23) : magnitude | 0x7f800000u;
  return (Floats)((bits & 0x8000u) << 16 | (magnitude < (1u << 23) ? denormal : normal));
}

template <typename Lanes>
CLIPKIT_INLINE void store_numbers(Lanes lanes, float* to, Floats value) { lanes.store(to, value); }

template <typename Lanes>
CLIPKIT_INLINE void store_numbers(Lanes lanes, Bfloat16* to, Floats value) {
  const Words bits = (Words)value;
  const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  store_words(lanes, to, (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded);
}

template <typename Lanes>
CLIPKIT_INLINE void store_numbers(Lanes lanes, Half* to, Floats value) {
  const Words bits = (Words)value, magnitude = bits & 0x7fffffffu;
  const Words denormal = (Words)((Floats)magnitude + 0.5f) - 0x3f000000u;
  const Words normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  Words result = magnitude < 0x38800000u ? denormal : normal;
  result = magnitude >= 0x477ff000u ? Words{} + 0x7c00u : result;
  result = magnitude > 0x7f800000u ? Words{} + 0x7e00u : result;
  store_words(lanes, to, (bits >> 16 & 0x8000u) | result);
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
