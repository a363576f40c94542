// SPDX-License-Identifier: Apache-2.0
// The exponential family's weights in place, and the one-sweep softmax of detached keys.
#pragma once

#include "cpu/tile_statistics.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

template <bool kRows, bool kColumns, bool kFactors>
CLIPKIT_INLINE void tile_gradient_of(const Gradient& work) {
  const Tile& tile = work.tile;
  for (int64_t i = 0; i < tile.rows; ++i) {
    float* line = tile.products + i * tile.stride;
    const float row_offset = kRows ? work.row_offset[i] : 0.0f;
    const float row_factor = kFactors && work.row_factor ? work.row_factor[i] : tile.scale;
    along(tile.columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
      const Floats product = lanes.load(line + j);
      const Floats along_row = logit(product, row_factor);
      Floats weight;
      if (kRows) weight = exponential(along_row - row_offset);
      if (kColumns) {
        const bool own = kFactors && work.column_factor;
        const Floats down_column = kFactors ? logit(product, own ? lanes.load(work.column_factor + j) : all(tile.scale)) : along_row;
        const Floats other = exponential(down_column - lanes.load(work.column_offset + j));
        weight = kRows ? weight + other : other;
      }
      lanes.store(line + j, weight);
    });
    // A positive's weight is a difference near zero that only its own formula gets right: it comes from outside.
    const int64_t j = positive_of(work.positives, i, tile.columns);
    if (j >= 0) line[j] = work.positive_weight[i];
  }
}

template <bool kFactors>
CLIPKIT_INLINE void tile_gradient_with(const Gradient& work) {
  if (!work.column_offset) return tile_gradient_of<true, false, kFactors>(work);
  if (!work.row_offset) return tile_gradient_of<false, true, kFactors>(work);
  tile_gradient_of<true, true, kFactors>(work);
}

inline void tile_gradient(const Gradient& work) {
  work.row_factor || work.column_factor ? tile_gradient_with<true>(work) : tile_gradient_with<false>(work);
}

// How far a row's logits may pass its offset before what was summed so far is scaled down: nothing is lost below e^88 / (terms), and an
// offset that stands still saves the pass over the products made so far.
constexpr float kHeadroom = 16.0f;

inline void tile_online_softmax(const OnlineSoftmax& work) {
  const Tile& tile = work.tile;
  const float factor = factor_of(tile.scale);
  mask_positives(tile, work.positives, factor, work.positive_logit);
  for (int64_t i = 0; i < tile.rows; ++i) {
    float* line = tile.products + i * tile.stride;
    const float highest = largest_logit(line, tile.columns, factor);
    float& offset = work.row.offset[i];
    float& total = work.row.sum[i];
    work.shrink[i] = 1.0f;
    if (highest > offset + kHeadroom || (offset == kNothing && highest > kNothing)) {
      work.shrink[i] = expf(offset - highest);
      total *= work.shrink[i];
      offset = highest;
    }
    const float reference = offset == kNothing ? 0.0f : offset;  // nothing so far, unless it is NaN
    Floats found = {};
    along(tile.columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
      const Floats e = lanes.keep(exponential<false>(logit(lanes.load(line + j), factor) - reference));
      found += e;
      lanes.store(line + j, e);
    });
    total += sum(found);
  }
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
