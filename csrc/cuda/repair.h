// SPDX-License-Identifier: Apache-2.0
// Exact log-sum-exps for the few lines that the finaliser listed as suspect: each is computed again over all columns, relative to its own
// largest logit. How long the list is stays on the device: with an empty one every block returns at once and the host learns nothing.
//
// A line's columns are split over several blocks, because one line's products read all of Y and one multiprocessor cannot read it fast. One
// thread takes one column at a time: the lanes of a warp walk 32 rows of Y side by side, and the cache turns that into whole sectors.
#pragma once

#include <cmath>

#include "cuda/kernel.h"
#include "cuda/numbers.h"

namespace clipkit {

// A sum of exponentials: total * exp(highest).
struct ExpSum {
  float highest;
  float total;
};

CLIPKIT_HOST_DEVICE inline ExpSum empty_sum() { return {-INFINITY, 0.0f}; }

// exp(value - reference) for value <= reference, right for equal infinities too.
CLIPKIT_HOST_DEVICE inline float relative(float value, float reference) { return value == reference ? 1.0f : expf(value - reference); }

// A NaN total or logit reaches the result: no comparison with it can be true.
CLIPKIT_HOST_DEVICE inline ExpSum operator+(const ExpSum& a, const ExpSum& b) {
  const float highest = b.highest > a.highest ? b.highest : a.highest;
  return {highest, a.total * relative(a.highest, highest) + b.total * relative(b.highest, highest)};
}

CLIPKIT_HOST_DEVICE inline ExpSum& operator+=(ExpSum& a, const ExpSum& b) { return a = a + b; }

CLIPKIT_HOST_DEVICE inline ExpSum term(float logit) {
  return logit != logit ? ExpSum{-INFINITY, logit} : ExpSum{logit, logit == -INFINITY ? 0.0f : 1.0f};
}

CLIPKIT_HOST_DEVICE inline float log_of(const ExpSum& sum) { return sum.total == 0.0f ? -INFINITY : sum.highest + logf(sum.total); }

// Which lines, and where their partial sums go.
struct Suspects {
  const int64_t* list;
  const int* listed;
  int64_t lines;   // the list's capacity
  int splits;      // parts that the columns are cut into
  ExpSum* partials;  // [lines, splits], by position in the list
};

template <class Number>
struct RepairLines {
  static constexpr int kThreads = 256;
  static constexpr int kPhases = 2 + tree_steps<kThreads>();
  static constexpr int64_t kMostBlocks = 2048;
  struct Shared {
    ExpSum sums[kThreads];
  };

  Suspects suspects;
  const Number* x;  // [lines, width]
  const Number* y;  // [columns, width]
  int64_t x_stride;
  int64_t y_stride;
  int64_t columns;
  int64_t width;
  const float* scale;
  int64_t diagonal;  // with skip: the column line + diagonal is left out
  bool skip;

  CLIPKIT_HOST_DEVICE int64_t items() const { return static_cast<int64_t>(*suspects.listed) * suspects.splits; }
  int64_t blocks() const {
    const int64_t most = suspects.lines * suspects.splits;
    return most < kMostBlocks ? most : kMostBlocks;
  }

  CLIPKIT_HOST_DEVICE void phase(int number, int64_t item, int thread, Shared& shared) const {
    if (number == 0) {
      shared.sums[thread] = own_columns(suspects.list[item / suspects.splits], item % suspects.splits, thread);
    } else if (number < kPhases - 1) {
      tree_step<kThreads>(number - 1, thread, shared.sums);
    } else if (thread == 0) {
      suspects.partials[item] = shared.sums[0];
    }
  }

 private:
  CLIPKIT_HOST_DEVICE ExpSum own_columns(int64_t line, int64_t split, int thread) const {
    const int64_t first = columns * split / suspects.splits, last = columns * (split + 1) / suspects.splits;
    ExpSum sum = empty_sum();
    for (int64_t column = first + thread; column < last; column += kThreads)
      if (!skip || column != line + diagonal) sum += term(product(x + line * x_stride, y + column * y_stride) * *scale);
    return sum;
  }

  CLIPKIT_HOST_DEVICE float product(const Number* a, const Number* b) const {
    float sums[4] = {};  // four chains: the additions overlap, and each rounds a quarter as often
    int64_t k = 0;
    for (; k + 4 <= width; k += 4)
      for (int lane = 0; lane < 4; ++lane) sums[lane] = fmaf(to_float(a[k + lane]), to_float(b[k + lane]), sums[lane]);
    for (; k < width; ++k) sums[0] = fmaf(to_float(a[k]), to_float(b[k]), sums[0]);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
};

// Adds up the splits and overwrites the suspect lines' results.
struct RepairFinish : Elementwise {
  Suspects suspects;
  float* log_sum;

  RepairFinish(const Suspects& suspects, float* log_sum) : suspects(suspects), log_sum(log_sum) {}

  CLIPKIT_HOST_DEVICE int64_t items() const { return groups(*suspects.listed); }
  int64_t blocks() const { return groups(suspects.lines); }

  CLIPKIT_HOST_DEVICE void phase(int, int64_t item, int thread, Nothing&) const {
    const int64_t position = element(item, thread);
    if (position >= *suspects.listed) return;
    ExpSum sum = empty_sum();
    for (int split = 0; split < suspects.splits; ++split) sum += suspects.partials[position * suspects.splits + split];
    log_sum[suspects.list[position]] = log_of(sum);
  }
};

}  // namespace clipkit
