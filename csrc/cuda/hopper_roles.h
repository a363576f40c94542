// SPDX-License-Identifier: Apache-2.0
// What the threads of the Hopper statistics sweep do, written once against a Machine: the kernel's is PTX (hopper_statistics.cu), the tests'
// is a simulation of the chip's asynchronous parts on the CPU, which runs these very lines over every thread in many orders.
//
// A Machine gives
//   wait_full(stage, parity), wait_empty(stage, parity)   until that phase of the stage's barrier has ended
//   load(stage, depth, pair, column_tile)                 start the copies into a stage, peer's half of Y included
//   multiply(products, stage, start)                      start products (start: =, else +=) X Yᵀ of a stage
//   retire_previous()                                     until at most the multiply started last is unfinished
//   retire(products)                                      until none is: only now products may be read
//   release(stage)                                        this warp has read the stage: tell both blocks
//   grant_head_start(), await_head_start()                first consumer to second, once
//   shuffle_xor(value, mask), exp2(value)                 within the warp; 2**value, flushed to 0 below 2**-126
//   group_barrier(), scratch()                            the warpgroup's 128 threads; its GroupScratch in shared memory
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/hopper_tiles.h"

#ifdef __CUDACC__
#define CLIPKIT_UNROLL _Pragma("unroll")
#define CLIPKIT_ROLLED _Pragma("unroll 1")
#else
#define CLIPKIT_UNROLL
#define CLIPKIT_ROLLED
#endif

namespace clipkit::hopper {

constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLog2E = 1.4426950408889634f;
// The offset of what has seen no logit: below any, and finite, so that differences of offsets are never inf - inf.
constexpr float kNoOffset = -1e30f;

// One launch, of at most plan.items clusters: S = scale * X Yᵀ for `rows` rows of X from first_row on and all rows of Y.
struct Sweep {
  Plan plan;
  int rows;
  int columns;
  int depth_blocks;  // ceil(width / kTileDepth)
  int first_row;
  bool without_diagonal;  // leave out the pairs j == i + diagonal, i counted from first_row
  int diagonal;
  const float* scale;
  // Out. With o the offset: sum exp(s - o), o in nats. Layout as Partials wants it.
  float* row_sums;        // [column_tiles, rows]
  float* row_offsets;     // [row_groups(rows), column_tiles]
  float* column_sums;     // [column_strips, columns]
  float* column_offsets;  // [column_strips, column_tiles]
};

// Where a thread sits: block of the cluster, consumer warpgroup of the block, warp of the warpgroup, lane.
struct Seat {
  int block;
  int consumer;
  int warp;
  int lane;
};

struct GroupScratch {
  float sums[kWarpsPerGroup][kTileColumns];
  float offsets[kWarpsPerGroup];
};

// One thread per block.
template <class Machine>
CLIPKIT_HOST_DEVICE void produce(Machine& machine, const Sweep& sweep, int cluster, int clusters) {
  Ring at;
  for (int index = cluster; index < sweep.plan.items; index += clusters) {
    const Item item = item_at(sweep.plan, index);
    CLIPKIT_ROLLED
    for (int pair = item.first_pair; pair < item.end_pair; ++pair) {
      CLIPKIT_ROLLED
      for (int depth = 0; depth < sweep.depth_blocks; ++depth) {
        machine.wait_empty(at.stage, at.parity ^ 1);
        machine.load(at.stage, depth, pair, item.column_tile);
        at.advance();
      }
    }
  }
}

// The product of one tile, all of the width. One multiply stays in flight while the stage before it is given back.
template <class Machine>
CLIPKIT_HOST_DEVICE void multiply_tile(Machine& machine, Ring& at, int depth_blocks, bool& owes_head_start, float (&products)[kProducts]) {
  int last = at.stage;
  CLIPKIT_ROLLED
  for (int depth = 0; depth < depth_blocks; ++depth) {
    machine.wait_full(at.stage, at.parity);
    machine.multiply(products, at.stage, depth == 0);
    if (depth > 0) {
      machine.retire_previous();
      machine.release(last);
    }
    if (owes_head_start && (depth + 1 == kHeadStart || depth + 1 == depth_blocks)) {
      machine.grant_head_start();
      owes_head_start = false;
    }
    last = at.stage;
    at.advance();
  }
  machine.retire(products);
  machine.release(last);
}

// Where a warp's 16 x 256 products lie in S.
struct WarpTile {
  int first_row;
  int first_column;
  int column_tile;
};

CLIPKIT_HOST_DEVICE inline WarpTile warp_tile(const Seat& seat, int pair, int column_tile) {
  const int tile = pair * kClusterBlocks + seat.block;
  return {tile * kTileRows + seat.consumer * kStripRows + seat.warp * kWarpRows, column_tile * kTileColumns, column_tile};
}

// Whether some product of the tile does not count, or the largest product is not the largest logit.
CLIPKIT_HOST_DEVICE inline bool needs_care(const Sweep& sweep, const WarpTile& tile, float factor) {
  const bool ragged = tile.first_row + kWarpRows > sweep.rows || tile.first_column + kTileColumns > sweep.columns;
  const int pair_column = tile.first_row + sweep.diagonal - tile.first_column;  // of the first row's pair, in the tile
  const bool crossed = sweep.without_diagonal && pair_column < kTileColumns && pair_column + kWarpRows > 0;
  return ragged || crossed || factor < 0.0f;
}

// Products to base-2 logits in place, -inf where they do not count: selects, and only in tiles that need it.
CLIPKIT_HOST_DEVICE inline void to_logits(const Sweep& sweep, const WarpTile& tile, int lane, float factor, float (&products)[kProducts]) {
  const int rows_left = sweep.rows - tile.first_row;
  const int columns_left = sweep.columns - tile.first_column;
  // A column that no tile has where no pair is to be left out.
  const int pair_column = sweep.without_diagonal ? tile.first_row + sweep.diagonal - tile.first_column : -kWarpRows - kTileColumns;
  CLIPKIT_UNROLL
  for (int value = 0; value < kProducts; ++value) {
    const int row = product_row(lane, value), column = product_column(lane, value);
    const bool counts = row < rows_left && column < columns_left && column != pair_column + row;
    products[value] = counts ? products[value] * factor : -INFINITY;
  }
}

template <class Machine>
CLIPKIT_HOST_DEVICE float largest_in_warp(Machine& machine, const float (&products)[kProducts]) {
  float chains[4] = {products[0], products[1], products[2], products[3]};  // four, for the latency of a maximum
  CLIPKIT_UNROLL
  for (int value = 4; value < kProducts; ++value) chains[value % 4] = fmaxf(chains[value % 4], products[value]);
  float largest = fmaxf(fmaxf(chains[0], chains[1]), fmaxf(chains[2], chains[3]));
  CLIPKIT_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) largest = fmaxf(largest, machine.shuffle_xor(largest, mask));
  return largest;
}

// One tile of a warp into its row sums, which leave, and its column sums, which stay. The warp's offset is the largest logit it has met in
// this item: no thread waits for another warp, one exponential serves both directions, and the column sums change scale only where the offset rises.
template <class Machine>
CLIPKIT_HOST_DEVICE void fold_tile(Machine& machine, const Sweep& sweep, const WarpTile& tile, int lane, float factor,
                                   float (&products)[kProducts], float (&column_sums)[kThreadColumns], float& offset) {
  if (needs_care(sweep, tile, factor)) {
    to_logits(sweep, tile, lane, factor, products);
    factor = 1.0f;
  }
  const float largest = largest_in_warp(machine, products) * factor;
  if (largest > offset) {
    const float shrink = machine.exp2(offset - largest);
    CLIPKIT_UNROLL
    for (int column = 0; column < kThreadColumns; ++column) column_sums[column] *= shrink;
    offset = largest;
  }

  float upper = 0.0f, lower = 0.0f;  // the thread's two rows, eight apart
  CLIPKIT_UNROLL
  for (int column = 0; column < kThreadColumns; column += 2) {
    float terms[4];
    CLIPKIT_UNROLL
    for (int k = 0; k < 4; ++k) terms[k] = machine.exp2(fmaf(products[2 * column + k], factor, -offset));
    upper += terms[0] + terms[1];
    lower += terms[2] + terms[3];
    column_sums[column] += terms[0] + terms[2];
    column_sums[column + 1] += terms[1] + terms[3];
  }

  // Four lanes share two rows: even lanes take the upper one, odd lanes the lower one. Two shuffles where four would add both up everywhere.
  const bool odd = lane % 2 != 0;
  float sum = (odd ? lower : upper) + machine.shuffle_xor(odd ? upper : lower, 1);
  sum += machine.shuffle_xor(sum, 2);
  const int row = tile.first_row + product_row(lane, odd ? 2 : 0);
  if (lane % 4 < 2 && row < sweep.rows) sweep.row_sums[static_cast<int64_t>(tile.column_tile) * sweep.rows + row] = sum;
  if (lane == 0 && tile.first_row < sweep.rows) {
    const int64_t group = tile.first_row / kWarpRows;
    sweep.row_offsets[group * sweep.plan.column_tiles + tile.column_tile] = offset * kLn2;
  }
}

// One exchange with the lane at distance kMask: both hold sums of the same 2 * kHalf columns and each keeps the half that its own bit says.
// Returns the first column kept.
template <int kHalf, int kMask, class Machine>
CLIPKIT_HOST_DEVICE int keep_half(Machine& machine, int lane, float (&column_sums)[kThreadColumns]) {
  const bool second = (lane & kMask) != 0;
  CLIPKIT_UNROLL
  for (int column = 0; column < kHalf; ++column) {
    const float kept = second ? column_sums[column + kHalf] : column_sums[column];
    const float sent = second ? column_sums[column] : column_sums[column + kHalf];
    column_sums[column] = kept + machine.shuffle_xor(sent, kMask);
  }
  return second ? kHalf : 0;
}

// Adds up the column sums of the eight lanes that hold the same columns, in 32 + 16 + 8 shuffles instead of 3 * 64. The lane ends with
// kThreadColumns / 8 sums, of its columns from the returned one on.
template <class Machine>
CLIPKIT_HOST_DEVICE int reduce_columns(Machine& machine, int lane, float (&column_sums)[kThreadColumns]) {
  const int first = keep_half<kThreadColumns / 2, 4>(machine, lane, column_sums);
  const int second = keep_half<kThreadColumns / 4, 8>(machine, lane, column_sums);
  return first + second + keep_half<kThreadColumns / 8, 16>(machine, lane, column_sums);
}

// The column sums of an item: over lanes, over the warps of the warpgroup (each with its own offset), out.
template <class Machine>
CLIPKIT_HOST_DEVICE void store_columns(Machine& machine, const Sweep& sweep, const Seat& seat, const Item& item,
                                       float (&column_sums)[kThreadColumns], float offset) {
  const int first = reduce_columns(machine, seat.lane, column_sums);
  GroupScratch& scratch = machine.scratch();
  CLIPKIT_UNROLL
  for (int column = 0; column < kThreadColumns / 8; ++column)
    scratch.sums[seat.warp][thread_column(seat.lane, first + column)] = column_sums[column];
  if (seat.lane == 0) scratch.offsets[seat.warp] = offset;
  machine.group_barrier();

  float common = scratch.offsets[0];
  for (int warp = 1; warp < kWarpsPerGroup; ++warp) common = fmaxf(common, scratch.offsets[warp]);
  const int thread = seat.warp * kWarpLanes + seat.lane;
  const int64_t strip = (static_cast<int64_t>(item.band) * kClusterBlocks + seat.block) * kConsumers + seat.consumer;
  float sums[kTileColumns / kGroupThreads] = {};
  CLIPKIT_UNROLL
  for (int warp = 0; warp < kWarpsPerGroup; ++warp) {
    const float shrink = machine.exp2(scratch.offsets[warp] - common);
    CLIPKIT_UNROLL
    for (int part = 0; part < kTileColumns / kGroupThreads; ++part)
      sums[part] += scratch.sums[warp][part * kGroupThreads + thread] * shrink;
  }
  CLIPKIT_UNROLL
  for (int part = 0; part < kTileColumns / kGroupThreads; ++part) {
    const int column = item.column_tile * kTileColumns + part * kGroupThreads + thread;
    if (column < sweep.columns) sweep.column_sums[strip * sweep.columns + column] = sums[part];
  }
  if (thread == 0) sweep.column_offsets[strip * sweep.plan.column_tiles + item.column_tile] = common * kLn2;
  machine.group_barrier();  // the next item must not write what a slower warp still reads
}

// Every thread of both consumer warpgroups. They work on the same stages, the second about kHeadStart stages behind the first: while one does
// its exponentials the other has multiplies to issue. Without the lag both would reach the end of a tile together and leave the tensor cores idle;
// once there it lasts, because whoever is alone at the tensor cores goes twice as fast.
template <class Machine>
CLIPKIT_HOST_DEVICE void consume(Machine& machine, const Sweep& sweep, const Seat& seat, int cluster, int clusters) {
  const float factor = *sweep.scale * kLog2E;
  float products[kProducts] = {};
  bool owes_head_start = seat.consumer == 0;
  if (!owes_head_start) machine.await_head_start();

  Ring at;
  for (int index = cluster; index < sweep.plan.items; index += clusters) {
    const Item item = item_at(sweep.plan, index);
    float column_sums[kThreadColumns] = {};
    float offset = kNoOffset;
    CLIPKIT_ROLLED
    for (int pair = item.first_pair; pair < item.end_pair; ++pair) {
      multiply_tile(machine, at, sweep.depth_blocks, owes_head_start, products);
      fold_tile(machine, sweep, warp_tile(seat, pair, item.column_tile), seat.lane, factor, products, column_sums, offset);
    }
    store_columns(machine, sweep, seat, item, column_sums, offset);
  }
}

}  // namespace clipkit::hopper
