// SPDX-License-Identifier: Apache-2.0
// The sigmoid family: loss and weights of a tile from one exponential per logit.
//
// Every pair is treated as a negative, t = s + bias, softplus(t) and G = sigmoid(t); positives are taken out first, as products whose
// logit is -infinity, and put in after their row in double, softplus(-t) and G = -sigmoid(-t), so that neither cancels.
#pragma once

#include "cpu/tile_statistics.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

struct RowOfPositives {
  int64_t count;
  int32_t* at;    // their columns in the tile, each once
  float* logit;   // with the bias
};

inline RowOfPositives take_out_positives(const Sigmoid& work, int64_t i, float* line, float factor) {
  RowOfPositives row{0, reinterpret_cast<int32_t*>(work.scratch), work.scratch + work.tile.columns};
  for (int64_t k = work.targets.offset[i]; k < work.targets.offset[i + 1]; ++k) {
    const int64_t j = work.targets.column[k] - work.targets.first;
    if (j < 0 || j >= work.tile.columns || work.seen[j]) continue;
    work.seen[j] = 1;
    row.at[row.count] = static_cast<int32_t>(j);
    row.logit[row.count++] = line[j] * work.tile.scale + work.bias[j];
    line[j] = masked_product(factor);
  }
  return row;
}

inline double put_in_positives(const Sigmoid& work, const RowOfPositives& row, float* line) {
  double loss = 0.0;
  for (int64_t k = 0; k < row.count; ++k) {
    const int32_t j = row.at[k];
    const double t = row.logit[k];
    loss += (t < 0.0 ? -t : 0.0) + log1p(exp(-fabs(t)));
    work.seen[j] = 0;
    if (!work.want_gradient) continue;
    const double weight = -1.0 / (1.0 + exp(t));
    line[j] = static_cast<float>(weight);
    work.column_total[j] += weight;
  }
  return loss;
}

template <bool kGradient>
CLIPKIT_INLINE double tile_sigmoid_of(const Sigmoid& work) {
  const Tile& tile = work.tile;
  const float factor = factor_of(tile.scale);
  float* down = work.scratch + 2 * tile.columns;  // fp32 within the tile, double across tiles
  if (kGradient) memset(down, 0, sizeof(float) * tile.columns);
  double loss = 0.0;
  for (int64_t i = 0; i < tile.rows; ++i) {
    float* line = tile.products + i * tile.stride;
    const RowOfPositives positives = take_out_positives(work, i, line, factor);
    Floats total = {};
    along(tile.columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
      const SoftplusSigmoid both = softplus_and_sigmoid(lanes.load(line + j) * factor + lanes.load(work.bias + j));
      total += lanes.keep(both.softplus);
      if (!kGradient) return;
      lanes.store(line + j, both.sigmoid);
      lanes.store(down + j, lanes.load(down + j) + both.sigmoid);
    });
    loss += sum(total) + put_in_positives(work, positives, line);
  }
  for (int64_t j = 0; kGradient && j < tile.columns; ++j) work.column_total[j] += down[j];
  return loss;
}

inline double tile_sigmoid(const Sigmoid& work) {
  return work.want_gradient ? tile_sigmoid_of<true>(work) : tile_sigmoid_of<false>(work);
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
