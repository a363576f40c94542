// SPDX-License-Identifier: Apache-2.0
// The exponential family on bf16 towers, whole sweeps: what `clip_tile.h` does to a tile, over all tiles of S = scale X Y^T.
#pragma once

#include <cstdint>

#include "cpu/bf16_products.h"

namespace clipkit {

struct Bf16Form {
  const Bf16Kernel& kernel;
  Bf16Matrix x;
  Bf16Matrix y;
  float scale;
  int threads;
};

// Log-sum-exps of the rows and columns of S, without the positives (row i's is column i + diagonal) where `without_positives`. For a
// positive scale.
void bf16_log_sum_exps(const Bf16Form& form, bool without_positives, int64_t diagonal, float* row_lse, float* column_lse);

// g_y += G Y and gt_x += G^T X for G_ij = exp(S_ij - row_offset_i) + exp(S_ij - column_offset_j), and G = diagonal_weight_i on positives. A
// product whose data are null is left out.
void bf16_exponential_products(const Bf16Form& form, const float* row_offset, const float* column_offset, int64_t diagonal,
                               const float* diagonal_weight, const Fp32Matrix& g_y, const Fp32Matrix& gt_x);

}  // namespace clipkit
