// SPDX-License-Identifier: Apache-2.0
// The fused epilogue of the CLIP loss on one fp32 tile of products p_ij = <x_i, y_j>; logits are s_ij = scale * p_ij.
#pragma once

#include <cstdint>

namespace clipkit {

struct TileStatistics {
  float* row_offset;  // [rows]: sum_j exp(s_ij) = row_sum[i] * exp(row_offset[i])
  float* row_sum;
  float* column_offset;  // [columns]
  float* column_sum;
};

// Row and column partial statistics from one exponential per logit, taken relative to the tile's largest logit. A row or column that
// lies so far under it that terms were flushed is computed again relative to its own largest logit, while the tile is in cache. Products
// of -infinity are masked logits (for a positive scale): they contribute nothing; a line of nothing else has the sum 0.
void clip_tile_statistics(const float* products, int64_t stride, int64_t rows, int64_t columns, float scale, const TileStatistics& out);

// Replaces products by G_ij = exp(s_ij - row_lse_i) + exp(s_ij - column_lse_j) - 2 [j == i + diagonal], unnormalised (the loss's 1/(2N)
// stays out of it). Rows of the tile pair with columns shifted by `diagonal`; a diagonal outside the tile touches nothing.
void clip_tile_gradient(float* products, int64_t stride, int64_t rows, int64_t columns, float scale, const float* row_lse,
                        const float* column_lse, int64_t diagonal);

}  // namespace clipkit
