// SPDX-License-Identifier: Apache-2.0
// Each row's log-sum-exp and softmax mean of its own products, at a scale of its own.
#pragma once

#include "cpu/tile_statistics.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

// kRows rows at once, their largest logits first: a row whose mass lies on one column then has a weight of exactly one there, and the
// mean is that product to the bit.
template <int kRows>
CLIPKIT_INLINE void rows_anchors(const Anchors& work, int64_t first) {
  const Tile& tile = work.tile;
  const float* line[kRows];
  float factor[kRows], offset[kRows];
  Floats total[kRows], moment[kRows];
  for (int r = 0; r < kRows; ++r) {
    factor[r] = factor_of(work.row_factor[first + r]);
    mask_positive(tile, work.positives, first + r, factor[r], nullptr);
    line[r] = tile.products + (first + r) * tile.stride;
    offset[r] = largest_logit(line[r], tile.columns, factor[r]);
    if (!(offset[r] > kNothing)) offset[r] = 0.0f;  // nothing to sum, unless it is NaN
    total[r] = moment[r] = Floats{};
  }
  along(tile.columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    for (int r = 0; r < kRows; ++r) {
      const Floats product = lanes.load(line[r] + j);
      const Floats e = lanes.keep(exponential<false>(logit(product, factor[r]) - offset[r]));
      total[r] += e;
      moment[r] += e == 0.0f ? Floats{} : e * product;  // what is masked is infinite
    }
  });
  for (int r = 0; r < kRows; ++r) {
    const float found = sum(total[r]);
    if (found == 0.0f) continue;
    const Shares shares = raise(work.row.offset[first + r], offset[r]);
    float& running = work.row.sum[first + r];
    float& mean = work.moment[first + r];
    running = running * shares.before + found * shares.now;
    mean = mean * shares.before + sum(moment[r]) * shares.now;
  }
}

inline void tile_anchors(const Anchors& work) {
  int64_t i = 0;
  for (; i + 4 <= work.tile.rows; i += 4) rows_anchors<4>(work, i);
  for (; i < work.tile.rows; ++i) rows_anchors<1>(work, i);
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
