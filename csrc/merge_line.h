// SPDX-License-Identifier: Apache-2.0
// Merging per-tile partial sums of exponentials into log-sum-exps. The body of one thread lives here, so that the CUDA kernel and a plain
// C++ loop (which is how the tests run it without a GPU) execute the same lines.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace clipkit {

// A line whose LSE lies this many nats under the largest offset of its tiles may have lost terms: a term is flushed to zero some 87 nats
// below its tile's offset, so everything lost by the other lines is under N * exp(-27) of their sum.
constexpr float kSuspectGap = 60.0f;

// What is known of a line after some of its tiles: their sum is total * exp(reference), the largest of their offsets is `largest`.
struct MergeState {
  float reference;
  float total;
  float largest;
};

// Partials of `lines` rows (or columns) over `tiles` tiles: line l holds sums[t * lines + l] = sum_j exp(s_lj - o) over tile t, where
// o = offsets[(l / line_block) * offset_line_stride + t * offset_tile_stride] is the offset that tile t used for line l.
struct Partials {
  const float* sums;
  const float* offsets;
  int64_t lines;
  int64_t tiles;
  int64_t line_block;
  int64_t offset_line_stride;
  int64_t offset_tile_stride;
  float* log_sum;          // out: [lines]
  unsigned char* suspect;  // out: [lines], 1 where the line must be computed again with its own offset
  int64_t* list;           // out, unless null: [lines], the suspect lines in any order
  int* listed;             // in and out, with list: how many; the caller starts it at 0
  // Tiles may come in several launches, in order: each but the first goes on from `before`, each but the last leaves `after` and no result.
  const MergeState* before;  // [lines] or null
  MergeState* after;         // [lines] or null; may be `before`
};

// What thread number `line` does; threads past the end do nothing.
CLIPKIT_HOST_DEVICE inline void merge_line(int64_t line, const Partials& partials) {
  if (line >= partials.lines) return;
  const float* sums = partials.sums + line;
  const float* offsets = partials.offsets + (line / partials.line_block) * partials.offset_line_stride;

  const MergeState before = partials.before != nullptr ? partials.before[line] : MergeState{-INFINITY, 0.0f, -INFINITY};
  float largest = before.largest;      // over all tiles: what decides whether the line is suspect
  float reference = before.reference;  // over the tiles that contributed: what the sum is taken relative to
  for (int64_t tile = 0; tile < partials.tiles; ++tile) {
    const float offset = offsets[tile * partials.offset_tile_stride];
    if (offset > largest) largest = offset;
    // A NaN sum counts as a contribution, so that it reaches the result.
    if (sums[tile * partials.lines] != 0.0f && offset > reference) reference = offset;
  }
  float total = before.total == 0.0f ? 0.0f : before.total * expf(before.reference - reference);
  for (int64_t tile = 0; tile < partials.tiles; ++tile) {
    const float sum = sums[tile * partials.lines];
    if (sum != 0.0f) total += sum * expf(offsets[tile * partials.offset_tile_stride] - reference);
  }
  if (partials.after != nullptr) {
    partials.after[line] = {reference, total, largest};
    return;
  }
  const float log_sum = total == 0.0f ? -INFINITY : reference + logf(total);
  partials.log_sum[line] = log_sum;
  const bool suspect = log_sum < largest - kSuspectGap;
  partials.suspect[line] = suspect ? 1 : 0;
  if (suspect && partials.list != nullptr) partials.list[atomic_increment(partials.listed)] = line;
}

}  // namespace clipkit
