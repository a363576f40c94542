// SPDX-License-Identifier: Apache-2.0
// Geometry of the Hopper statistics sweep: tiles, work order, ring of stages, and where the hardware puts what. Plain functions of integers,
// compiled by nvcc for the kernel and by any C++ compiler for the tests.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace clipkit::hopper {

// One block (CTA) multiplies 128 rows of X with 256 rows of Y, a stage of the width at a time. Its two consumer warpgroups own 64 rows
// each; two blocks form a cluster, lie below each other (a "pair" of tiles, 256 rows) and share the tile of Y: each loads one half of it into
// both. Per stage and block 128 + 128 rows come out of L2 instead of 128 + 256.
constexpr int kClusterBlocks = 2;
constexpr int kConsumers = 2;
constexpr int kWarpsPerGroup = 4;
constexpr int kWarpLanes = 32;
constexpr int kGroupThreads = kWarpsPerGroup * kWarpLanes;
constexpr int kBlockThreads = (1 + kConsumers) * kGroupThreads;  // one producer warpgroup, then the consumers

constexpr int kWarpRows = 16;  // rows of the product that one warp of a warpgroup holds
constexpr int kStripRows = kWarpsPerGroup * kWarpRows;
constexpr int kTileRows = kConsumers * kStripRows;
constexpr int kPairRows = kClusterBlocks * kTileRows;
constexpr int kTileColumns = 256;
constexpr int kTileDepth = 32;      // 64 works too; why 32, see hopper_statistics.cu
constexpr int kMultiplyDepth = 16;  // of one wgmma on 16-bit elements
constexpr int kBoxRows = 128;       // of X and of Y that one bulk copy brings

constexpr int kElementBytes = 2;
constexpr int kRowBytes = kTileDepth * kElementBytes;
constexpr int kBoxBytes = kBoxRows * kRowBytes;
constexpr int kStageBytes = kBoxBytes * (1 + kClusterBlocks);  // X, then the halves of Y
constexpr int kSharedBytes = 227 * 1024;                       // what a block may have,
constexpr int kOtherShared = 9 * 1024;                         // of it for the exchange at an item's end and the barriers
constexpr int kStages = (kSharedBytes - kOtherShared) / kStageBytes;  // 9; 4 of depth 64
constexpr int kHeadStart = kStages * 2 / 3;                           // see consume() in hopper_roles.h
static_assert(kTileRows == kBoxRows && kTileColumns == kClusterBlocks * kBoxRows, "one box for X, one half of Y per block");
static_assert(kHeadStart < kStages, "a head start as long as the ring would leave no stage to load");

// A warp frees a stage in its own block and in the peer, whose bulk copies write here too: a barrier hears every consumer warp of the cluster.
constexpr int kWarpsThatFree = kClusterBlocks * kConsumers * kWarpsPerGroup;

// What one thread holds of the 64 x 256 product of its warpgroup.
constexpr int kProducts = kStripRows * kTileColumns / kGroupThreads;
constexpr int kThreadColumns = kProducts / 2;

// The accumulator layout of wgmma m64nNk16 (the PTX manual's figure for D): value v of a lane lies in this row of its warp's 16 rows and in
// this column. Consecutive values are two columns, then the same two eight rows further down.
CLIPKIT_HOST_DEVICE constexpr int product_row(int lane, int value) { return lane / 4 + 8 * (value / 2 % 2); }
CLIPKIT_HOST_DEVICE constexpr int product_column(int lane, int value) { return value / 4 * 8 + lane % 4 * 2 + value % 2; }
// The same for the thread's own numbering of its columns: values 4j + b and 4j + b + 2 are its column 2j + b.
CLIPKIT_HOST_DEVICE constexpr int thread_column(int lane, int column) { return column / 2 * 8 + lane % 4 * 2 + column % 2; }

// Shared memory, from the start of the stages, which is a multiple of 1024. A bulk copy leaves a row of its box in kRowBytes whose 16-byte
// chunks have changed places by address bits 7 and up; wgmma reads them back by the same rule, so nobody here computes it.
CLIPKIT_HOST_DEVICE constexpr int x_at(int stage, int consumer) { return stage * kStageBytes + consumer * kStripRows * kRowBytes; }
CLIPKIT_HOST_DEVICE constexpr int y_at(int stage, int half) { return stage * kStageBytes + kBoxBytes * (1 + half); }
constexpr int kSwizzleAtom = 8 * kRowBytes;
static_assert(kRowBytes == 128 || kRowBytes == 64, "the swizzles that wgmma and the copy engine share");
static_assert(kBoxBytes % kSwizzleAtom == 0 && kStripRows * kRowBytes % kSwizzleAtom == 0, "operands start where the swizzle starts");

// wgmma's descriptor of a swizzled K-major operand at a shared address, atoms of 8 rows one after another. All fields in units of 16 bytes;
// the leading offset has no meaning in this layout and is 1 by convention; bits 62-63 are the swizzle, 1 for 128 bytes and 2 for 64. The
// operand's start moves by 32 bytes per 16 elements of depth: the hardware swizzles address bits, so a start inside an atom's row is right.
CLIPKIT_HOST_DEVICE constexpr uint64_t operand_descriptor(uint32_t shared_address) {
  const uint64_t start = (shared_address & 0x3FFFF) >> 4;
  const uint64_t leading = 1, stride = kSwizzleAtom >> 4, swizzle = kRowBytes == 128 ? 1 : 2;
  return start | leading << 16 | stride << 32 | swizzle << 62;
}
constexpr uint64_t kDescriptorPerMultiply = kMultiplyDepth * kElementBytes >> 4;

// Position in the ring of stages. A barrier's phase ends once per turn: the turn's parity is what a wait asks for. The producer asks for the
// parity before: on the first turn that phase counts as ended, so that an empty ring is free.
struct Ring {
  int stage = 0;
  uint32_t parity = 0;

  CLIPKIT_HOST_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Work is cut into items: one tile of columns and up to `pairs_per_item` consecutive pairs of row tiles, walked downwards by one cluster with
// the column sums in registers. Consecutive clusters take items below each other until `items_per_group` row bands are done, then step right:
// what runs together shares columns of Y and a band of X that stays in L2.
struct Plan {
  int pairs;
  int column_tiles;
  int pairs_per_item;
  int row_bands;
  int bands_per_group;
  int items;
};

struct Item {
  int band;
  int first_pair;
  int end_pair;
  int column_tile;
};

// 32 pairs, 8192 rows, of X at a time: 8 MB at width 512, 20 MB at 1280, beside the columns in flight in 50 MB of L2.
constexpr int kGroupPairs = 32;
constexpr int kMostPairsPerItem = 8;
// The end of an item (56 shuffles, one exchange) against one tile, rounded up: what decides between fewer ends and fuller last rounds.
constexpr int kTileCost = 20, kItemEndCost = 2;

CLIPKIT_HOST_DEVICE inline Plan plan_items(int64_t rows, int64_t columns, int pairs_per_item) {
  Plan plan{};
  plan.pairs = static_cast<int>(ceil_div(rows, kPairRows));
  plan.column_tiles = static_cast<int>(ceil_div(columns, kTileColumns));
  plan.pairs_per_item = pairs_per_item;
  plan.row_bands = static_cast<int>(ceil_div(plan.pairs, pairs_per_item));
  plan.bands_per_group = kGroupPairs / pairs_per_item;
  plan.items = plan.row_bands * plan.column_tiles;
  return plan;
}

// The plan under which `clusters` clusters finish soonest; of equal ones that with the longest items, which writes least.
inline Plan best_plan(int64_t rows, int64_t columns, int clusters) {
  Plan best{};
  int64_t best_cost = INT64_MAX;
  for (int pairs = kMostPairsPerItem; pairs >= 1; --pairs) {
    const Plan plan = plan_items(rows, columns, pairs);
    const int64_t cost = ceil_div(plan.items, clusters) * (pairs * kTileCost + kItemEndCost);
    if (cost < best_cost) {
      best = plan;
      best_cost = cost;
    }
  }
  return best;
}

CLIPKIT_HOST_DEVICE inline Item item_at(const Plan& plan, int index) {
  const int per_group = plan.bands_per_group * plan.column_tiles;
  const int group = index / per_group, within = index % per_group;
  const int first_band = group * plan.bands_per_group;
  const int left = plan.row_bands - first_band;
  const int bands = left < plan.bands_per_group ? left : plan.bands_per_group;
  Item item{};
  item.band = first_band + within % bands;
  item.column_tile = within / bands;
  item.first_pair = item.band * plan.pairs_per_item;
  const int end = item.first_pair + plan.pairs_per_item;
  item.end_pair = end < plan.pairs ? end : plan.pairs;
  return item;
}

// Partials. Row sums have an offset per warp's 16 rows and tile of columns; column sums one per (item, warpgroup) and tile of columns.
CLIPKIT_HOST_DEVICE constexpr int64_t row_groups(int64_t rows) { return ceil_div(rows, kWarpRows); }
CLIPKIT_HOST_DEVICE constexpr int column_strips(const Plan& plan) { return plan.row_bands * kClusterBlocks * kConsumers; }

}  // namespace clipkit::hopper
