// SPDX-License-Identifier: Apache-2.0
#include "cpu/bf16_lines.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

void clipkit::add_multiple(float* out, const uint16_t* line, float factor, int64_t width) {
  constexpr int64_t kLanes = 16;
  const __m512 factors = _mm512_set1_ps(factor);
  for (int64_t j = 0; j < width; j += kLanes) {
    const auto present = static_cast<__mmask16>(width - j >= kLanes ? 0xFFFF : (1u << (width - j)) - 1u);
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, line + j)), 16);
    const __m512 sum = _mm512_fmadd_ps(factors, _mm512_castsi512_ps(bits), _mm512_maskz_loadu_ps(present, out + j));
    _mm512_mask_storeu_ps(out + j, present, sum);
  }
}

#else  // never called: without the instructions no weights are rounded

void clipkit::add_multiple(float*, const uint16_t*, float, int64_t) {}

#endif
