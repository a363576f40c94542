// SPDX-License-Identifier: Apache-2.0
#include "cpu/clip_tile.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/vector_math.h"
#include "merge_line.h"

namespace clipkit {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

CLIPKIT_CLONES
float largest_logit(const float* products, int64_t stride, int64_t rows, int64_t columns, float scale) {
  float largest = kMinusInfinity;
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = products + i * stride;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < columns; ++j) {
      const float logit = row[j] * scale;
      largest = logit > largest ? logit : largest;
    }
  }
  return largest;
}

// The hot loop of the forward: one exponential feeds its row's sum (a register) and its column's sum (a cached vector).
CLIPKIT_CLONES
void accumulate(const float* products, int64_t stride, int64_t rows, int64_t columns, float scale, float offset, float* row_sum,
                float* __restrict__ column_sum) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* __restrict__ row = products + i * stride;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < columns; ++j) {
      const float e = exp_fast(row[j] * scale - offset);
      sum += e;
      column_sum[j] += e;
    }
    row_sum[i] = sum;
  }
}

// A single row or column relative to its own largest logit: rare, so it need not be fast.
void own_statistics(const float* line, int64_t stride, int64_t count, float scale, float& offset, float& sum) {
  offset = kMinusInfinity;
  for (int64_t k = 0; k < count; ++k) offset = std::max(offset, line[k * stride] * scale);
  sum = 0.0f;
  if (offset == kMinusInfinity) return;  // every logit is masked
  for (int64_t k = 0; k < count; ++k) sum += std::exp(line[k * stride] * scale - offset);
}

CLIPKIT_CLONES
void gradient_row(float* __restrict__ row, int64_t columns, float scale, float row_lse, const float* __restrict__ column_lse) {
#pragma omp simd
  for (int64_t j = 0; j < columns; ++j) {
    const float logit = row[j] * scale;
    row[j] = exp_fast(logit - row_lse) + exp_fast(logit - column_lse[j]);
  }
}

}  // namespace

void clip_tile_statistics(const float* products, int64_t stride, int64_t rows, int64_t columns, float scale, const TileStatistics& out) {
  const float largest = largest_logit(products, stride, rows, columns, scale);
  const float offset = largest == kMinusInfinity ? 0.0f : largest;
  std::fill_n(out.row_offset, rows, offset);
  std::fill_n(out.column_offset, columns, offset);
  std::fill_n(out.column_sum, columns, 0.0f);
  accumulate(products, stride, rows, columns, scale, offset, out.row_sum, out.column_sum);

  const float least = std::exp(-kSuspectGap);
  for (int64_t i = 0; i < rows && columns > 0; ++i)
    if (out.row_sum[i] < least) own_statistics(products + i * stride, 1, columns, scale, out.row_offset[i], out.row_sum[i]);
  for (int64_t j = 0; j < columns && rows > 0; ++j)
    if (out.column_sum[j] < least) own_statistics(products + j, stride, rows, scale, out.column_offset[j], out.column_sum[j]);
}

void clip_tile_gradient(float* products, int64_t stride, int64_t rows, int64_t columns, float scale, const float* row_lse,
                        const float* column_lse, int64_t diagonal) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = products + i * stride;
    const int64_t j = i + diagonal;
    const bool paired = j >= 0 && j < columns;
    // expm1 keeps the digits that 1 - P loses when a pair is already well learned.
    const float logit = paired ? row[j] * scale : 0.0f;
    gradient_row(row, columns, scale, row_lse[i], column_lse);
    if (paired) row[j] = std::expm1(logit - row_lse[i]) + std::expm1(logit - column_lse[j]);
  }
}

}  // namespace clipkit
