// SPDX-License-Identifier: Apache-2.0
// Second order: the sums and the weights of the Hessian-vector product of the CLIP loss.
#pragma once

#include "cpu/tile_statistics.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

struct CurvatureLines {
  float* logits;
  float* along_rows;
  float* along_columns;
};

CLIPKIT_INLINE CurvatureLines lines_of(const Curvature& form, int64_t i) {
  return {form.tile.products + i * form.tile.stride, form.along_rows.products + i * form.along_rows.stride,
          form.along_columns.products + i * form.along_columns.stride};
}

inline void tile_curvature_sums(const CurvatureSums& work) {
  const Curvature& form = work.form;
  const Tile& tile = form.tile;
  float* down = work.scratch;  // fp32 within the tile, double across tiles: these sums cancel
  memset(down, 0, sizeof(float) * tile.columns);
  for (int64_t i = 0; i < tile.rows; ++i) {
    const CurvatureLines line = lines_of(form, i);
    const float row_lse = form.row_lse[i];
    Floats total = {};
    along(tile.columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
      const Floats s = logit(lanes.load(line.logits + j), tile.scale);
      const Floats p = exponential(s - row_lse);
      const Floats q = exponential(s - lanes.load(form.column_lse + j));
      total += lanes.keep(p * (lanes.load(line.along_rows + j) * form.along_rows.scale));
      lanes.store(down + j, lanes.load(down + j) + q * (lanes.load(line.along_columns + j) * form.along_columns.scale));
    });
    work.row_sum[i] += sum(total);
  }
  for (int64_t j = 0; j < tile.columns; ++j) work.column_sum[j] += down[j];
}

template <bool kOneDirection>
CLIPKIT_INLINE void tile_curvature_weights_of(const CurvatureWeights& work) {
  const Curvature& form = work.form;
  const Tile& tile = form.tile;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const CurvatureLines line = lines_of(form, i);
    const float row_lse = form.row_lse[i], row_mean = work.row_mean[i];
    along(tile.columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
      const Floats s = logit(lanes.load(line.logits + j), tile.scale);
      const Floats p = exponential(s - row_lse);
      const Floats q = exponential(s - lanes.load(form.column_lse + j));
      const Floats to_rows = lanes.load(line.along_rows + j) * form.along_rows.scale - row_mean;
      const Floats to_columns = lanes.load(line.along_columns + j) * form.along_columns.scale - lanes.load(work.column_mean + j);
      lanes.store(line.along_rows + j, p * to_rows + q * to_columns);
      lanes.store(line.logits + j, kOneDirection ? p + q : p);
      if (!kOneDirection) lanes.store(line.along_columns + j, q);
    });
    // P - I, Q - I and M are differences near zero there, known exactly from the margins.
    const int64_t j = positive_of(work.positives, i, tile.columns);
    if (j < 0) continue;
    line.logits[j] = kOneDirection ? -(work.row_miss[i] + work.column_miss[i]) : -work.row_miss[i];
    if (!kOneDirection) line.along_columns[j] = -work.column_miss[i];
    line.along_rows[j] = work.positive_weight[i];
  }
}

inline void tile_curvature_weights(const CurvatureWeights& work) {
  const bool one = work.form.along_rows.products == work.form.along_columns.products;
  one ? tile_curvature_weights_of<true>(work) : tile_curvature_weights_of<false>(work);
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
