// SPDX-License-Identifier: Apache-2.0
// The finaliser of the forward statistics: compact per-tile partials to row or column log-sum-exps. Reads lie along the lines, so every
// warp's loads are contiguous; the arithmetic (one expf per partial) hides behind them.
#pragma once

#include "cuda/kernel.h"
#include "merge_line.h"

namespace clipkit {

struct MergeLines : Elementwise {
  Partials partials;

  explicit MergeLines(const Partials& partials) : partials(partials) {}

  CLIPKIT_HOST_DEVICE int64_t items() const { return groups(partials.lines); }
  int64_t blocks() const { return items(); }

  CLIPKIT_HOST_DEVICE void phase(int, int64_t item, int thread, Nothing&) const { merge_line(element(item, thread), partials); }
};

}  // namespace clipkit
