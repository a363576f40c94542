// SPDX-License-Identifier: Apache-2.0
// AVX512-BF16: eight rows of 32 columns at a time, sixteen accumulating registers.
#include "cpu/bf16_kernels.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

#include <cstring>

namespace clipkit {
namespace {

void enter(unsigned char*) {}
void leave(const unsigned char*) {}

void multiply_eight_rows(const unsigned char* left, const unsigned char* right, int64_t blocks, float* out,
                                             int64_t stride, bool add) {
  constexpr int kRows = 8;
  __m512 sums[kRows][2];
  for (int i = 0; i < kRows; ++i) {
    sums[i][0] = add ? _mm512_loadu_ps(out + i * stride) : _mm512_setzero_ps();
    sums[i][1] = add ? _mm512_loadu_ps(out + i * stride + 16) : _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < blocks; ++k, left += kBf16BlockBytes, right += kBf16BlockBytes) {
    for (int pair = 0; pair < 16; ++pair) {
      const auto first = (__m512bh)_mm512_loadu_si512(right + 64 * pair);
      const auto second = (__m512bh)_mm512_loadu_si512(right + kBf16TileBytes + 64 * pair);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        int word;
        std::memcpy(&word, left + 64 * i + 4 * pair, sizeof word);
        const auto both = (__m512bh)_mm512_set1_epi32(word);
        sums[i][0] = _mm512_dpbf16_ps(sums[i][0], both, first);
        sums[i][1] = _mm512_dpbf16_ps(sums[i][1], both, second);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    _mm512_storeu_ps(out + i * stride, sums[i][0]);
    _mm512_storeu_ps(out + i * stride + 16, sums[i][1]);
  }
}

void multiply(const unsigned char* left, const unsigned char* right, int64_t blocks, float* out, int64_t stride, bool add) {
  for (int64_t row = 0; row < kBf16Panel; row += 8) {
    const unsigned char* tile = left + (row / 16) * kBf16TileBytes + (row % 16) * 64;
    multiply_eight_rows(tile, right, blocks, out + row * stride, stride, add);
  }
}

}  // namespace

const Bf16Kernel* bf16_kernel_avx512() {
  static constexpr Bf16Kernel kernel{"avx512_bf16", enter, leave, multiply};
  return &kernel;
}

}  // namespace clipkit

#else

const clipkit::Bf16Kernel* clipkit::bf16_kernel_avx512() { return nullptr; }

#endif
