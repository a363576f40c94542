// SPDX-License-Identifier: Apache-2.0
#include "cpu/bf16_pack.h"

#include <algorithm>

#include "cpu/bf16_kernels.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

namespace clipkit {
namespace {

constexpr int64_t kTile = 16;

// The first `count` of 16 or 32 lanes, for counts outside 0..lanes too.
inline __mmask32 lanes32(int64_t count) {
  return count >= 32 ? 0xFFFFFFFFu : count <= 0 ? 0u : (1u << count) - 1u;
}
inline __mmask16 lanes16(int64_t count) { return static_cast<__mmask16>(lanes32(std::min<int64_t>(count, 16))); }

inline void store(unsigned char* to, __m512i value) { _mm512_storeu_si512(to, value); }

// Sixteen rows of sixteen 32-bit words, transposed: pairs of rows, pairs of pairs, then quarters of registers.
inline void transpose(__m512i row[16]) {
  __m512i half[16];
  for (int i = 0; i < 16; i += 2) {
    half[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    half[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    row[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
    row[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
    row[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
    row[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // row[4 g + i] holds column 4 q + i of rows 4 g .. 4 g + 3 in its quarter q
    const __m512i even = _mm512_shuffle_i32x4(row[i], row[4 + i], 0x88), odd = _mm512_shuffle_i32x4(row[i], row[4 + i], 0xDD);
    const __m512i even2 = _mm512_shuffle_i32x4(row[8 + i], row[12 + i], 0x88), odd2 = _mm512_shuffle_i32x4(row[8 + i], row[12 + i], 0xDD);
    half[i] = _mm512_shuffle_i32x4(even, even2, 0x88);
    half[8 + i] = _mm512_shuffle_i32x4(even, even2, 0xDD);
    half[4 + i] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
    half[12 + i] = _mm512_shuffle_i32x4(odd, odd2, 0xDD);
  }
  for (int i = 0; i < 16; ++i) row[i] = half[i];
}

// Sixteen words of 16 bit from `first` on alternating with sixteen from `second` on, counted through one register and then the other.
struct Alternating {
  alignas(64) uint16_t index[32] = {};
  constexpr Alternating(uint16_t first, uint16_t second) {
    for (uint16_t i = 0; i < 16; ++i) {
      index[2 * i] = first + i;
      index[2 * i + 1] = second + i;
    }
  }
};
constexpr Alternating kFirstHalves{0, 32}, kLastHalves{16, 48}, kOwnHalves{0, 16};

// Columns of two rows of weights, neighbours in the contraction, as sixteen 32-bit words.
inline __m512i pair_of_rows(const float* row, const float* next, __mmask16 columns, __mmask16 next_columns) {
  const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(next_columns, next), _mm512_maskz_loadu_ps(columns, row));
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOwnHalves.index), (__m512i)both);
}

}  // namespace

void pack_left(const uint16_t* source, int64_t stride, int64_t lines, int64_t depth, unsigned char* panel) {
  for (int64_t line = 0; line < kBf16Panel; ++line) {
    const uint16_t* from = source + line * stride;
    unsigned char* to = panel + (line / kTile) * kBf16TileBytes + (line % kTile) * 64;
    for (int64_t k = 0; k < depth; k += kBf16Panel, to += kBf16BlockBytes)
      store(to, line < lines ? _mm512_maskz_loadu_epi16(lanes32(depth - k), from + k) : _mm512_setzero_si512());
  }
}

void pack_right(const uint16_t* source, int64_t stride, int64_t lines, int64_t depth, unsigned char* panel) {
  for (int64_t k = 0; k < depth; k += kBf16Panel) {
    const __mmask32 present = lanes32(depth - k);
    for (int64_t first = 0; first < kBf16Panel; first += kTile, panel += kBf16TileBytes) {
      __m512i row[16];
      for (int64_t i = 0; i < kTile; ++i)
        row[i] = first + i < lines ? _mm512_maskz_loadu_epi16(present, source + (first + i) * stride + k) : _mm512_setzero_si512();
      transpose(row);
      for (int64_t i = 0; i < kTile; ++i) store(panel + 64 * i, row[i]);
    }
  }
}

void pack_right_across(const uint16_t* source, int64_t stride, int64_t lines, int64_t width, unsigned char* block,
                                           int64_t panel_bytes) {
  const __m512i first = _mm512_load_si512(kFirstHalves.index), last = _mm512_load_si512(kLastHalves.index);
  for (int64_t column = 0; column < width; column += kBf16Panel, block += panel_bytes) {
    const __mmask32 present = lanes32(width - column);
    for (int64_t pair = 0; pair < kTile; ++pair) {
      const uint16_t* line = source + 2 * pair * stride + column;
      const __m512i even = 2 * pair < lines ? _mm512_maskz_loadu_epi16(present, line) : _mm512_setzero_si512();
      const __m512i odd = 2 * pair + 1 < lines ? _mm512_maskz_loadu_epi16(present, line + stride) : _mm512_setzero_si512();
      store(block + 64 * pair, _mm512_permutex2var_epi16(even, first, odd));
      store(block + kBf16TileBytes + 64 * pair, _mm512_permutex2var_epi16(even, last, odd));
    }
  }
}

void pack_weights(const float* source, int64_t stride, int64_t rows, int64_t depth, unsigned char* panel) {
  for (int64_t i = 0; i < kBf16Panel; ++i) {
    const float* row = source + i * stride;
    unsigned char* to = panel + (i / kTile) * kBf16TileBytes + (i % kTile) * 64;
    for (int64_t k = 0; k < depth; k += kBf16Panel, to += kBf16BlockBytes) {
      const int64_t left = i < rows ? depth - k : 0;
      const __m512 first = _mm512_maskz_loadu_ps(lanes16(left), row + k);
      const __m512 second = _mm512_maskz_loadu_ps(lanes16(left - kTile), row + k + kTile);
      store(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
  }
}

void pack_weights_transposed(const float* source, int64_t stride, int64_t columns, int64_t depth,
                                                 unsigned char* panel) {
  for (int64_t k = 0; k < depth; k += kBf16Panel) {
    for (int64_t first = 0; first < kBf16Panel; first += kTile, panel += kBf16TileBytes) {
      const __mmask16 present = lanes16(columns - first);
      __m512i word[16];
      for (int64_t pair = 0; pair < kTile; ++pair) {
        const int64_t row = k + 2 * pair;
        const float* from = source + row * stride + first;
        word[pair] = pair_of_rows(from, from + stride, row < depth ? present : 0, row + 1 < depth ? present : 0);
      }
      transpose(word);
      for (int64_t i = 0; i < kTile; ++i) store(panel + 64 * i, word[i]);
    }
  }
}

}  // namespace clipkit

#else  // never called: without the instructions there is no kernel to pack for

void clipkit::pack_left(const uint16_t*, int64_t, int64_t, int64_t, unsigned char*) {}
void clipkit::pack_right(const uint16_t*, int64_t, int64_t, int64_t, unsigned char*) {}
void clipkit::pack_right_across(const uint16_t*, int64_t, int64_t, int64_t, unsigned char*, int64_t) {}
void clipkit::pack_weights(const float*, int64_t, int64_t, int64_t, unsigned char*) {}
void clipkit::pack_weights_transposed(const float*, int64_t, int64_t, int64_t, unsigned char*) {}

#endif
