// SPDX-License-Identifier: Apache-2.0
// Per-sample state of the global contrastive losses (log u of either side, and individual temperatures), kept as a table with one row per
// sample and read and written by int64 sample id: nothing is copied to the host and nothing waits for it.
//
// An id outside the table reads as NaN, so the loss shows it, and is never written. Where an id occurs twice in a batch, every occurrence
// reads the old row and the one at the lowest position is stored: the same bits whichever thread comes first.
#pragma once

#include <cmath>

#include "cuda/kernel.h"

namespace clipkit {

struct SampleTable {
  float* values;
  int64_t samples;
  int64_t row_stride;  // at least columns: a table may hold more than what one launch works on
  int columns;

  CLIPKIT_HOST_DEVICE bool holds(int64_t id) const { return id >= 0 && id < samples; }
  CLIPKIT_HOST_DEVICE float& at(int64_t id, int column) const { return values[id * row_stride + column]; }
};

// log(e^a + e^b); equal infinities give themselves.
CLIPKIT_HOST_DEVICE inline float log_add_exp(float a, float b) {
  if (a == b && isinf(a)) return a;
  return fmaxf(a, b) + log1pf(expf(-fabsf(a - b)));
}

struct MovingAverage {
  float log_keep;   // log(1 - gamma), -inf where gamma is 1
  float log_blend;  // log(gamma)

  static MovingAverage of(double gamma) {
    return {static_cast<float>(std::log1p(-gamma)), static_cast<float>(std::log(gamma))};
  }

  // log of (1 - gamma) u + gamma g; log g on the first visit (log u = -inf), and always where gamma is 1, whatever was stored before.
  CLIPKIT_HOST_DEVICE float advance(float log_u, float log_g) const {
    if (log_u == -INFINITY || log_keep == -INFINITY) return log_g;
    return log_add_exp(log_u + log_keep, log_g + log_blend);
  }
};

// Rows of the table by id: out [count, columns].
struct GatherState : Elementwise {
  SampleTable table;
  const int64_t* ids;
  int64_t count;
  float* out;

  GatherState(const SampleTable& table, const int64_t* ids, int64_t count, float* out) : table(table), ids(ids), count(count), out(out) {}

  CLIPKIT_HOST_DEVICE int64_t items() const { return groups(count * table.columns); }
  int64_t blocks() const { return items(); }

  CLIPKIT_HOST_DEVICE void phase(int, int64_t item, int thread, Nothing&) const {
    const int64_t index = element(item, thread);
    if (index >= count * table.columns) return;
    const int64_t id = ids[index / table.columns];
    out[index] = table.holds(id) ? table.at(id, static_cast<int>(index % table.columns)) : NAN;
  }
};

// The new log u of every position from the stored one and the batch's log g [count, columns], and log(u + eps); the table stays as it is,
// because a step may yet be thrown away.
struct AdvanceState : Elementwise {
  SampleTable table;
  const int64_t* ids;
  int64_t count;
  const float* log_g;
  MovingAverage average;
  float log_eps;    // -inf for eps = 0
  float* log_u;     // out: [count, columns]
  float* smoothed;  // out: log(u + eps) [count, columns]

  AdvanceState(const SampleTable& table, const int64_t* ids, int64_t count, const float* log_g, const MovingAverage& average, float log_eps,
               float* log_u, float* smoothed)
      : table(table), ids(ids), count(count), log_g(log_g), average(average), log_eps(log_eps), log_u(log_u), smoothed(smoothed) {}

  CLIPKIT_HOST_DEVICE int64_t items() const { return groups(count * table.columns); }
  int64_t blocks() const { return items(); }

  CLIPKIT_HOST_DEVICE void phase(int, int64_t item, int thread, Nothing&) const {
    const int64_t index = element(item, thread);
    if (index >= count * table.columns) return;
    const int64_t id = ids[index / table.columns];
    const float old = table.holds(id) ? table.at(id, static_cast<int>(index % table.columns)) : NAN;
    const float advanced = table.holds(id) ? average.advance(old, log_g[index]) : NAN;
    log_u[index] = advanced;
    smoothed[index] = log_eps == -INFINITY ? advanced : log_add_exp(advanced, log_eps);
  }
};

// For each id the lowest position at which it occurs: an open hash table of positions, at most half full. A slot, once taken, only ever holds
// positions of one id, so where an id's slot is depends on the order of threads, but what ends in it does not.
struct Claims {
  static constexpr int kFree = -1;  // the caller fills the slots with it

  const int64_t* ids;
  int* slots;     // [capacity]
  int64_t capacity;  // a power of two, at least twice the number of ids

  CLIPKIT_HOST_DEVICE void claim(int position) const {
    for (int64_t slot = start(ids[position]);; slot = (slot + 1) & (capacity - 1)) {
      const int holder = atomic_compare_and_swap(slots + slot, kFree, position);
      if (holder == kFree) return;
      if (ids[holder] == ids[position]) return atomic_minimum(slots + slot, position);
    }
  }

  CLIPKIT_HOST_DEVICE bool won(int position) const {
    int64_t slot = start(ids[position]);
    while (ids[slots[slot]] != ids[position]) slot = (slot + 1) & (capacity - 1);
    return slots[slot] == position;
  }

 private:
  // Neighbouring ids must not fill neighbouring slots: multiply by 2^64 over the golden ratio and keep the high half.
  CLIPKIT_HOST_DEVICE int64_t start(int64_t id) const {
    return static_cast<int64_t>((static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u) >> 32) & (capacity - 1);
  }
};

struct ClaimRows : Elementwise {
  Claims claims;
  int64_t count;
  int64_t samples;

  ClaimRows(const Claims& claims, int64_t count, int64_t samples) : claims(claims), count(count), samples(samples) {}

  CLIPKIT_HOST_DEVICE int64_t items() const { return groups(count); }
  int64_t blocks() const { return items(); }

  CLIPKIT_HOST_DEVICE void phase(int, int64_t item, int thread, Nothing&) const {
    const int64_t position = element(item, thread);
    if (position < count && claims.ids[position] >= 0 && claims.ids[position] < samples) claims.claim(static_cast<int>(position));
  }
};

// Stores the rows [count, columns] of the winners of an earlier ClaimRows; nothing at all where *skip is not zero.
struct ScatterState : Elementwise {
  SampleTable table;
  Claims claims;
  int64_t count;
  const float* rows;
  const float* skip;  // may be null

  ScatterState(const SampleTable& table, const Claims& claims, int64_t count, const float* rows, const float* skip)
      : table(table), claims(claims), count(count), rows(rows), skip(skip) {}

  CLIPKIT_HOST_DEVICE int64_t items() const { return skip != nullptr && *skip != 0.0f ? 0 : groups(count * table.columns); }
  int64_t blocks() const { return groups(count * table.columns); }

  CLIPKIT_HOST_DEVICE void phase(int, int64_t item, int thread, Nothing&) const {
    const int64_t index = element(item, thread);
    if (index >= count * table.columns) return;
    const auto position = static_cast<int>(index / table.columns);
    const int64_t id = claims.ids[position];
    if (table.holds(id) && claims.won(position)) table.at(id, static_cast<int>(index % table.columns)) = rows[index];
  }
};

}  // namespace clipkit
