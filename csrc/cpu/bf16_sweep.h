// SPDX-License-Identifier: Apache-2.0
// The exponential family on bf16 towers: its passes over a tile (tile.h) over all tiles of S = scale X Y^T, products included.
#pragma once

#include <cstdint>

#include "cpu/bf16_products.h"
#include "cpu/tile.h"

namespace clipkit {

struct Bf16Form {
  const Bf16Kernel& kernel;
  Bf16Matrix x;
  Bf16Matrix y;
  float scale;
  int threads;
};

// Sums of exp(S) along rows and columns, added to running ones. Positives, counted from the form's first column, are left out.
void bf16_statistics(const Bf16Form& form, Positives positives, RunningSums row, RunningSums column);

// Row sums of exp(row_factor_i <x_i, y_j>), the factor in place of the form's scale, and the sums of <x_i, y_j> with the same weights,
// added to running ones.
void bf16_anchors(const Bf16Form& form, Positives positives, const float* row_factor, RunningSums row, float* moment);

// What G is made of, over the whole form: exp(S_ij - row_offset_i) + exp(S_ij - column_offset_j), and positive_weight_i on positives.
struct Bf16Weights {
  Positives positives;
  const float* positive_weight;
  const float* row_offset;     // null: no such term
  const float* column_offset;  // null: no such term
  const float* row_factor;     // null: the form's scale
  const float* column_factor;  // null: the form's scale
};

// g_y += G Y and gt_x += G^T X. A product whose data are null is left out.
void bf16_products(const Bf16Form& form, const Bf16Weights& weights, const Fp32Matrix& g_y, const Fp32Matrix& gt_x);

}  // namespace clipkit
