// SPDX-License-Identifier: Apache-2.0
// Log-sum-exps of a tile's rows and columns from one exponential per logit.
//
// Rows go four at a time: their largest logits first, while the four lines come into the first-level cache, then the exponentials, each
// relative to its row's largest. A row's sum is thereby exact at any spread. A column's sum takes the same exponentials, weighted by
// e^(row's largest - column offset) with one offset for all columns, the largest logit so far; a column that lies so far under it that
// terms were flushed is computed again relative to its own largest logit, while the tile is in cache.
#pragma once

#include <cmath>

#include "cpu/tile.h"
#include "cpu/vector_functions.h"
#include "merge_line.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

constexpr float kNothing = -INFINITY;  // the logit of what is left out, and the offset of an empty sum

// A factor with which a masked product, infinite, is a logit of -infinity, also where the scale is zero.
CLIPKIT_INLINE float factor_of(float scale) { return scale == 0.0f ? 1e-38f : scale; }

CLIPKIT_INLINE float masked_product(float factor) { return factor < 0.0f ? INFINITY : -INFINITY; }

// Column of row i's positive in the tile, or -1.
CLIPKIT_INLINE int64_t positive_of(const Positives& positives, int64_t i, int64_t columns) {
  if (!positives.column) return -1;
  const int64_t j = positives.column[i] - positives.first;
  return j >= 0 && j < columns ? j : -1;
}

CLIPKIT_INLINE void mask_positive(const Tile& tile, const Positives& positives, int64_t i, float factor, float* logits) {
  const int64_t j = positive_of(positives, i, tile.columns);
  if (j < 0) return;
  float& product = tile.products[i * tile.stride + j];
  if (logits) logits[i] = tile.scale * product;
  product = masked_product(factor);
}

CLIPKIT_INLINE void mask_positives(const Tile& tile, const Positives& positives, float factor, float* logits) {
  for (int64_t i = 0; i < tile.rows; ++i) mask_positive(tile, positives, i, factor, logits);
}

CLIPKIT_INLINE float largest_logit(const float* line, int64_t columns, float factor) {
  Floats best = all(kNothing);
  along(columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    best = larger(logit(lanes.load(line + j), factor) - lanes.beyond(INFINITY), best);
  });
  return largest(best);
}

// What sums relative to a running offset and to another one count for, relative to the larger, which the running one becomes.
struct Shares {
  float before;
  float now;
};

CLIPKIT_INLINE Shares raise(float& running_offset, float offset) {
  const float reference = offset > running_offset ? offset : running_offset;
  const Shares shares{expf(running_offset - reference), expf(offset - reference)};
  running_offset = reference;
  return shares;
}

// Adds sum * e^offset to a running sum. Nothing at all leaves it as it is; a NaN enters it.
CLIPKIT_INLINE void merge(float& running_offset, float& running_sum, float offset, float sum) {
  if (sum == 0.0f) return;
  const Shares shares = raise(running_offset, offset);
  running_sum = running_sum * shares.before + sum * shares.now;
}

struct ColumnSums {
  float offset;
  float* sum;
};

// kRows rows at once: independent chains hide the latency of the polynomial, and column sums are read and written once for all of them.
template <int kRows, bool kColumns>
CLIPKIT_INLINE void rows_statistics(const Statistics& work, int64_t first, float factor, ColumnSums& down) {
  const Tile& tile = work.tile;
  const float* line[kRows];
  float offset[kRows], weight[kRows];
  Floats total[kRows];
  float highest = kNothing;
  for (int r = 0; r < kRows; ++r) {
    line[r] = tile.products + (first + r) * tile.stride;
    offset[r] = largest_logit(line[r], tile.columns, factor);
    highest = offset[r] > highest ? offset[r] : highest;
    total[r] = Floats{};
  }
  if (kColumns && highest > down.offset) {
    const Floats shrink = exponential(all(down.offset - highest));
    along(tile.columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA { lanes.store(down.sum + j, lanes.load(down.sum + j) * shrink); });
    down.offset = highest;
  }
  for (int r = 0; r < kRows; ++r) {
    weight[r] = kColumns && offset[r] > kNothing ? expf(offset[r] - down.offset) : 0.0f;
    if (!(offset[r] > kNothing)) offset[r] = 0.0f;  // nothing to sum, unless it is NaN
  }
  along(tile.columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    Floats column = kColumns ? lanes.load(down.sum + j) : Floats{};
    for (int r = 0; r < kRows; ++r) {
      const Floats e = lanes.keep(exponential<false>(logit(lanes.load(line[r] + j), factor) - offset[r]));
      total[r] += e;
      column += e * weight[r];
    }
    if (kColumns) lanes.store(down.sum + j, column);
  });
  for (int r = 0; r < kRows; ++r) merge(work.row.offset[first + r], work.row.sum[first + r], offset[r], sum(total[r]));
}

// Columns j ... j + lanes once more, each relative to its own largest logit.
template <typename Lanes>
CLIPKIT_INLINE void columns_again(const Tile& tile, float factor, int64_t j, Lanes lanes, float* offsets, float* sums) {
  Floats offset = all(kNothing), total = {};
  for (int64_t i = 0; i < tile.rows; ++i) offset = larger(logit(lanes.load(tile.products + i * tile.stride + j), factor), offset);
  const Floats reference = offset > kNothing ? offset : Floats{};
  for (int64_t i = 0; i < tile.rows; ++i)
    total += exponential<false>(logit(lanes.load(tile.products + i * tile.stride + j), factor) - reference);
  lanes.store(offsets + j, reference);
  lanes.store(sums + j, total);
}

inline void merge_columns(const Statistics& work, float factor, const ColumnSums& down, float* offsets) {
  const int64_t columns = work.tile.columns;
  const float least = expf(-kSuspectGap);
  along(columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    lanes.store(offsets + j, all(down.offset));
    if (any(lanes.load(down.sum + j) + lanes.beyond(1.0f) < least)) columns_again(work.tile, factor, j, lanes, offsets, down.sum);
    const Floats own = lanes.load(offsets + j), found = lanes.load(down.sum + j);
    const Floats before = lanes.load(work.column.offset + j), running = lanes.load(work.column.sum + j);
    const Ints empty = found == 0.0f;
    const Floats reference = larger(own, before);
    const Floats merged = running * exponential(before - reference) + found * exponential(own - reference);
    lanes.store(work.column.offset + j, empty ? before : reference);
    lanes.store(work.column.sum + j, empty ? running : merged);
  });
}

template <bool kColumns>
CLIPKIT_INLINE void tile_statistics_of(const Statistics& work) {
  const Tile& tile = work.tile;
  const float factor = factor_of(tile.scale);
  ColumnSums down{kNothing, work.scratch};
  if (kColumns) std::memset(down.sum, 0, sizeof(float) * tile.columns);
  mask_positives(tile, work.positives, factor, work.positive_logit);
  int64_t i = 0;
  for (; i + 4 <= tile.rows; i += 4) rows_statistics<4, kColumns>(work, i, factor, down);
  for (; i < tile.rows; ++i) rows_statistics<1, kColumns>(work, i, factor, down);
  if (kColumns) merge_columns(work, factor, down, work.scratch + tile.columns);
}

inline void tile_statistics(const Statistics& work) {
  if (work.tile.rows == 0 || work.tile.columns == 0) return;
  work.column.sum ? tile_statistics_of<true>(work) : tile_statistics_of<false>(work);
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
