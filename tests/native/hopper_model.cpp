// SPDX-License-Identifier: Apache-2.0
// One cluster of Hopper multiprocessors on the CPU, as far as the statistics sweep uses it: every thread is a fiber that runs the lines of
// hopper_roles.h; bulk copies and warpgroup multiplies happen some time after they were started, in an order drawn from a seed. The machine
// checks what the chip would not: that nothing is read before it is there or overwritten before it was read, that no barrier hears one arrival
// too many, that somebody can always go on. The rules of the hardware (barriers, swizzle, descriptors, fragments) are written down here a
// second time, from the PTX manual, not taken from the headers under test.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/hopper_roles.h"
#include "merge_line.h"

namespace {

using namespace clipkit::hopper;

// What the simulated chip can be made to do wrong, to show that the checks see it.
enum Fault { kNone, kFreesOwnBlockOnly, kFirstWarpFreesForAll };

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

// ---------------------------------------------------------------- fibers

class Scheduler;

struct Waiters {
  std::vector<int> fibers;
};

class Scheduler {
 public:
  static constexpr size_t kStackBytes = 32 << 10;
  static constexpr int kSpeeds[] = {1, 30, 1000};

  Scheduler(uint64_t seed, int classes) : random_(seed), ready_(classes), weights_(classes + kEventClasses, 1) {}

  void spawn(int fiber_class, std::function<void()> body) {
    fibers_.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *fibers_.back();
    fiber.body = std::move(body);
    fiber.fiber_class = fiber_class;
    fiber.stack.resize(kStackBytes);
    ready_[fiber_class].push_back(static_cast<int>(fibers_.size()) - 1);
    ++alive_;
  }

  // From within a fiber: go to sleep until someone wakes these waiters.
  void sleep(Waiters& waiters) {
    waiters.fibers.push_back(running_);
    Fiber& fiber = *fibers_[running_];
    if (_setjmp(fiber.place) == 0) _longjmp(home_, 1);
  }

  template <class Condition>
  void wait(Waiters& waiters, Condition condition) {
    while (!condition()) sleep(waiters);
  }

  void wake(Waiters& waiters) {
    for (int fiber : waiters.fibers) ready_[fibers_[fiber]->fiber_class].push_back(fiber);
    waiters.fibers.clear();
  }

  // Something the chip does later: a copy (kind 0) or a multiply (kind 1). Those of one queue happen in order.
  void later(int kind, int queue, std::function<void()> event) {
    if (queues_[kind].size() <= static_cast<size_t>(queue)) queues_[kind].resize(queue + 1);
    queues_[kind][queue].push_back(std::move(event));
    ++events_[kind];
  }

  void run() {
    int64_t turn = 0;
    for (int64_t step = 0; alive_ > 0 || events_[0] + events_[1] > 0; ++step) {
      // Speeds differ by factors of a thousand and change now and then: one part of the chip runs far ahead of another.
      if (step == turn) {
        for (int& weight : weights_) weight = kSpeeds[random_() % 3];
        turn += int64_t{64} << random_() % 9;
      }
      const int chosen = choose();
      if (chosen < 0) fail("nobody can go on: " + std::to_string(alive_) + " threads wait for each other");
      if (chosen < static_cast<int>(ready_.size())) {
        resume(take(ready_[chosen]));
      } else {
        happen(chosen - static_cast<int>(ready_.size()));
      }
    }
  }

 private:
  static constexpr int kEventClasses = 2;

  struct Fiber {
    std::function<void()> body;
    int fiber_class = 0;
    bool started = false;
    bool finished = false;
    std::vector<char> stack;
    ucontext_t context;
    jmp_buf place;
  };

  int choose() {
    int64_t total = 0;
    for (size_t i = 0; i < weights_.size(); ++i) total += available(i) ? weights_[i] : 0;
    if (total == 0) return -1;
    int64_t draw = static_cast<int64_t>(random_() % static_cast<uint64_t>(total));
    for (size_t i = 0; i < weights_.size(); ++i)
      if (available(i) && (draw -= weights_[i]) < 0) return static_cast<int>(i);
    return -1;
  }

  bool available(size_t i) const { return i < ready_.size() ? !ready_[i].empty() : events_[i - ready_.size()] > 0; }

  int take(std::vector<int>& from) {
    std::swap(from[random_() % from.size()], from.back());
    const int value = from.back();
    from.pop_back();
    return value;
  }

  void happen(int kind) {
    std::vector<int> waiting;
    for (size_t queue = 0; queue < queues_[kind].size(); ++queue)
      if (!queues_[kind][queue].empty()) waiting.push_back(static_cast<int>(queue));
    auto& queue = queues_[kind][take(waiting)];
    const auto event = std::move(queue.front());
    queue.pop_front();
    --events_[kind];
    event();
  }

  void resume(int index) {
    Fiber& fiber = *fibers_[index];
    running_ = index;
    if (_setjmp(home_) == 0) {
      if (fiber.started) _longjmp(fiber.place, 1);
      fiber.started = true;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = nullptr;
      current_ = this;
      makecontext(&fiber.context, &Scheduler::enter, 0);
      setcontext(&fiber.context);
    }
    if (fiber.finished) {
      fiber.finished = false;
      --alive_;
    }
    if (!error_.empty()) fail(error_);
  }

  static void enter() {
    Scheduler& self = *current_;
    Fiber& fiber = *self.fibers_[self.running_];
    try {
      fiber.body();
    } catch (const std::exception& error) {
      self.error_ = error.what();
    }
    fiber.finished = true;
    _longjmp(self.home_, 1);
  }

  static thread_local Scheduler* current_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<std::vector<int>> ready_;
  std::vector<std::deque<std::function<void()>>> queues_[kEventClasses];
  std::vector<int> weights_;
  int64_t events_[kEventClasses] = {};
  int alive_ = 0;
  int running_ = -1;
  std::string error_;
  jmp_buf home_;
};

thread_local Scheduler* Scheduler::current_ = nullptr;

// ---------------------------------------------------------------- the chip

// mbarrier: a phase ends when all arrivals and all expected bytes have come. Bytes may come before they are expected.
struct Barrier {
  int arrivals = 0;
  int pending = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  Waiters waiters;

  void init(int count) { arrivals = pending = count; }
  bool ended(uint32_t parity) const { return (phase & 1) != parity; }
  void arrive(Scheduler& scheduler) {
    if (--pending < 0) fail("a barrier heard one arrival too many");
    settle(scheduler);
  }
  void count(Scheduler& scheduler, int64_t landed) {
    bytes -= landed;
    settle(scheduler);
  }
  void settle(Scheduler& scheduler) {
    if (pending != 0 || bytes != 0) return;
    ++phase;
    pending = arrivals;
    scheduler.wake(waiters);
  }
};

// Where threads meet: the last to come lets all go.
struct Meeting {
  int expected = 0;
  int come = 0;
  uint64_t round = 0;
  Waiters waiters;

  // True for the last.
  bool arrive(Scheduler& scheduler) {
    if (++come < expected) return false;
    come = 0;
    ++round;
    scheduler.wake(waiters);
    return true;
  }
  void meet(Scheduler& scheduler) {
    const uint64_t mine = round;
    if (!arrive(scheduler)) scheduler.wait(waiters, [&] { return round != mine; });
  }
};

struct Matrix {
  const uint16_t* data;
  int64_t rows;
  int64_t width;
  bool bfloat16;
};

float value_of(uint16_t bits, bool bfloat16) {
  if (!bfloat16) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return half;
  }
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

constexpr int kBlockWarps = kConsumers * kWarpsPerGroup;
constexpr int kRegions = 1 + kClusterBlocks;  // of a stage: X and the halves of Y

struct Warp {
  Meeting shuffle, multiply;
  int stage = -1;
  bool start = false;
  float offered[kWarpLanes], seen[kWarpLanes];
  float* products[kWarpLanes];
  int started = 0, done = 0;  // multiplies
  Waiters retired;
};

struct Group {
  Meeting barrier;
  GroupScratch scratch;
};

struct Block {
  std::vector<unsigned char> memory = std::vector<unsigned char>(kStages * kStageBytes, 0xff);  // NaN until copied into
  Barrier full[kStages], empty[kStages];
  int landed[kStages][kRegions] = {};
  int reads[kStages][kBlockWarps] = {};
  Warp warps[kBlockWarps];
  Group groups[kConsumers];
  Meeting head_start;
};

struct Chip {
  Scheduler scheduler;
  Matrix x, y;
  Fault fault;
  Block blocks[kClusterBlocks];

  Chip(uint64_t seed, const Matrix& x, const Matrix& y, Fault fault) : scheduler(seed, kClusterBlocks * (1 + kBlockWarps)), x(x), y(y), fault(fault) {
    for (Block& block : blocks) {
      for (Barrier& barrier : block.full) barrier.init(1);
      for (Barrier& barrier : block.empty) barrier.init(fault == kFirstWarpFreesForAll ? kWarpsThatFree / kWarpsPerGroup : kWarpsThatFree);
      for (Warp& warp : block.warps) warp.shuffle.expected = warp.multiply.expected = kWarpLanes;
      for (Group& group : block.groups) group.barrier.expected = kGroupThreads;
      block.head_start.expected = kConsumers * kGroupThreads;
    }
  }

  // Address bits 4 to 6 are exclusive-ored with bits 7 to 9; in the 64-byte swizzle bits 4 and 5 with 7 and 8.
  static int swizzle(int address) { return address ^ (address >> 7 & (kRowBytes == 128 ? 7 : 3)) << 4; }

  void copy_lands(const Matrix& from, int element, int64_t row, Block& to, int stage, int region) {
    for (int reads : to.reads[stage])
      if (reads != to.landed[stage][region]) fail("a copy overwrites a stage that a warp has not read");
    ++to.landed[stage][region];
    const int base = region == 0 ? x_at(stage, 0) : y_at(stage, region - 1);
    for (int r = 0; r < kBoxRows; ++r)
      for (int e = 0; e < kTileDepth; ++e) {
        const bool inside = row + r < from.rows && element + e < from.width;
        const uint16_t bits = inside ? from.data[(row + r) * from.width + element + e] : 0;
        std::memcpy(&to.memory[swizzle(base + r * kRowBytes + e * 2)], &bits, 2);
      }
    to.full[stage].count(scheduler, kBoxBytes);
  }

  // Element (row, k) of a swizzled K-major operand: atoms of 8 rows by the descriptor's stride.
  float operand(const Block& block, uint64_t descriptor, int row, int k) const {
    if (descriptor >> 62 != (kRowBytes == 128 ? 1 : 2)) fail("a descriptor with another swizzle than the copies");
    const int start = static_cast<int>(descriptor & 0x3FFF) << 4, stride = static_cast<int>(descriptor >> 32 & 0x3FFF) << 4;
    const int address = swizzle(start + row / 8 * stride + row % 8 * kRowBytes + k * 2);
    uint16_t bits;
    std::memcpy(&bits, &block.memory.at(address), 2);
    return value_of(bits, x.bfloat16);
  }

  // One warp's 16 rows of a multiply.
  void multiply_happens(Block& block, int warp_index, int stage, bool start) {
    Warp& warp = block.warps[warp_index];
    const int turn = ++block.reads[stage][warp_index];
    for (int landed : block.landed[stage])
      if (landed != turn) fail("a multiply reads a stage that is not there");
    const int consumer = warp_index / kWarpsPerGroup, first_row = warp_index % kWarpsPerGroup * 16;
    std::vector<float> b(16 * kTileColumns), sums(16 * kTileColumns);
    for (int step = 0; step < kTileDepth / 16; ++step) {
      const uint64_t x_at_step = operand_descriptor(x_at(stage, consumer)) + step * kDescriptorPerMultiply;
      const uint64_t y_at_step = operand_descriptor(y_at(stage, 0)) + step * kDescriptorPerMultiply;
      for (int column = 0; column < kTileColumns; ++column)
        for (int k = 0; k < 16; ++k) b[k * kTileColumns + column] = operand(block, y_at_step, column, k);
      for (int row = 0; row < 16; ++row)
        for (int k = 0; k < 16; ++k) {
          const float a = operand(block, x_at_step, first_row + row, k);
          for (int column = 0; column < kTileColumns; ++column) sums[row * kTileColumns + column] += a * b[k * kTileColumns + column];
        }
    }
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < kTileColumns; ++column) {
        const int lane = row % 8 * 4 + column % 8 / 2, value = column / 8 * 4 + row / 8 * 2 + column % 2;
        float& product = warp.products[lane][value];
        product = (start ? 0.0f : product) + sums[row * kTileColumns + column];
      }
    ++warp.done;
    scheduler.wake(warp.retired);
  }
};

struct SimulatedMachine {
  Chip& chip;
  Seat seat;
  int first_row;

  Block& block() { return chip.blocks[seat.block]; }
  Warp& warp() { return block().warps[seat.consumer * kWarpsPerGroup + seat.warp]; }
  Group& group() { return block().groups[seat.consumer]; }

  void wait(Barrier& barrier, uint32_t parity) {
    chip.scheduler.wait(barrier.waiters, [&] { return barrier.ended(parity); });
  }
  void wait_full(int stage, uint32_t parity) { wait(block().full[stage], parity); }
  void wait_empty(int stage, uint32_t parity) { wait(block().empty[stage], parity); }

  void load(int stage, int depth, int pair, int column_tile) {
    Barrier& full = block().full[stage];
    full.bytes += kStageBytes;
    full.arrive(chip.scheduler);
    const int element = depth * kTileDepth;
    const int64_t x_row = first_row + static_cast<int64_t>(pair * kClusterBlocks + seat.block) * kTileRows;
    start_copy(chip.x, element, x_row, block(), stage, 0);
    for (Block& target : chip.blocks)
      start_copy(chip.y, element, static_cast<int64_t>(column_tile) * kTileColumns + seat.block * kBoxRows, target, stage, 1 + seat.block);
  }

  // Copies overtake each other: each has a queue of its own among a few.
  void start_copy(const Matrix& from, int element, int64_t row, Block& to, int stage, int region) {
    const int queue = (stage * kRegions + region) * kClusterBlocks + static_cast<int>(&to - chip.blocks);
    chip.scheduler.later(0, queue, [=, &to, &from, &chip = chip] { chip.copy_lands(from, element, row, to, stage, region); });
  }

  // The manual wants all four warps of a warpgroup to issue a multiply, but does not say that they wait for each other: here they do not.
  void multiply(float (&products)[kProducts], int stage, bool start) {
    Warp& w = warp();
    if (w.multiply.come == 0) {
      w.stage = stage;
      w.start = start;
    } else if (w.stage != stage || w.start != start) {
      fail("the threads of a warp do not multiply the same");
    }
    w.products[seat.lane] = products;
    const uint64_t mine = w.multiply.round;
    if (!w.multiply.arrive(chip.scheduler)) return chip.scheduler.wait(w.multiply.waiters, [&] { return w.multiply.round != mine; });
    ++w.started;
    const int index = seat.consumer * kWarpsPerGroup + seat.warp;
    chip.scheduler.later(1, seat.block * kBlockWarps + index,
                         [&chip = chip, &b = block(), index, stage, start] { chip.multiply_happens(b, index, stage, start); });
  }

  void retire_previous() { retire_until(warp().started - 1); }
  void retire(const float (&)[kProducts]) { retire_until(warp().started); }
  void retire_until(int wanted) {
    Warp& w = warp();
    chip.scheduler.wait(w.retired, [&] { return w.done >= wanted; });
  }

  void release(int stage) {
    if (seat.lane >= kClusterBlocks) return;
    if (chip.fault == kFirstWarpFreesForAll && seat.warp > 0) return;
    const int target = chip.fault == kFreesOwnBlockOnly ? seat.block : seat.lane;
    chip.blocks[target].empty[stage].arrive(chip.scheduler);
  }

  void grant_head_start() { block().head_start.arrive(chip.scheduler); }
  void await_head_start() { block().head_start.meet(chip.scheduler); }
  void group_barrier() { group().barrier.meet(chip.scheduler); }
  GroupScratch& scratch() { return group().scratch; }

  float shuffle_xor(float value, int mask) {
    Warp& w = warp();
    w.offered[seat.lane] = value;
    const uint64_t mine = w.shuffle.round;
    if (w.shuffle.come == kWarpLanes - 1) std::copy(std::begin(w.offered), std::end(w.offered), w.seen);
    if (!w.shuffle.arrive(chip.scheduler)) chip.scheduler.wait(w.shuffle.waiters, [&] { return w.shuffle.round != mine; });
    return w.seen[seat.lane ^ mask];
  }

  float exp2(float value) { return value < -126.0f ? 0.0f : exp2f(value); }
};

void run_cluster(const Sweep& sweep, const Matrix& x, const Matrix& y, int cluster, int clusters, uint64_t seed, Fault fault) {
  Chip chip(seed * 7919 + cluster, x, y, fault);
  for (int block = 0; block < kClusterBlocks; ++block) {
    chip.scheduler.spawn(block, [&, block] {
      SimulatedMachine machine{chip, {block, -1, 0, 0}, sweep.first_row};
      produce(machine, sweep, cluster, clusters);
    });
    for (int thread = 0; thread < kConsumers * kGroupThreads; ++thread) {
      const Seat seat{block, thread / kGroupThreads, thread % kGroupThreads / kWarpLanes, thread % kWarpLanes};
      chip.scheduler.spawn(kClusterBlocks + block * kBlockWarps + thread / kWarpLanes, [&, seat] {
        SimulatedMachine machine{chip, seat, sweep.first_row};
        consume(machine, sweep, seat, cluster, clusters);
      });
    }
  }
  chip.scheduler.run();
}

}  // namespace

// ---------------------------------------------------------------- Python's way in (ctypes)

extern "C" {

// out: pairs, column tiles, pairs per item, row bands, bands per group, items, row groups, column strips.
void hopper_plan(int64_t rows, int64_t columns, int pairs_per_item, int clusters, int64_t* out) {
  const Plan plan = pairs_per_item > 0 ? plan_items(rows, columns, pairs_per_item) : best_plan(rows, columns, clusters);
  const int64_t values[] = {plan.pairs, plan.column_tiles, plan.pairs_per_item, plan.row_bands, plan.bands_per_group, plan.items,
                            row_groups(rows), column_strips(plan)};
  std::copy(std::begin(values), std::end(values), out);
}

void hopper_item(int64_t rows, int64_t columns, int pairs_per_item, int index, int64_t* out) {
  const Item item = item_at(plan_items(rows, columns, pairs_per_item), index);
  const int64_t values[] = {item.band, item.first_pair, item.end_pair, item.column_tile};
  std::copy(std::begin(values), std::end(values), out);
}

int hopper_tile_depth() { return kTileDepth; }
int hopper_product_row(int lane, int value) { return product_row(lane, value); }
int hopper_product_column(int lane, int value) { return product_column(lane, value); }
int hopper_thread_column(int lane, int column) { return thread_column(lane, column); }
uint64_t hopper_descriptor(uint32_t address) { return operand_descriptor(address); }

// The whole sweep on `clusters` clusters, one after another. Returns what went wrong, "" for nothing.
const char* hopper_sweep(const uint16_t* x, int64_t x_rows, const uint16_t* y, int64_t y_rows, int64_t width, int bfloat16, int first_row,
                         int rows, float scale, int without_diagonal, int diagonal, int pairs_per_item, int clusters, uint64_t seed,
                         int fault, float* row_sums, float* row_offsets, float* column_sums, float* column_offsets) {
  static thread_local std::string message;
  message.clear();
  Sweep sweep{};
  sweep.plan = plan_items(rows, y_rows, pairs_per_item);
  sweep.rows = rows;
  sweep.columns = static_cast<int>(y_rows);
  sweep.depth_blocks = static_cast<int>(clipkit::ceil_div(width, kTileDepth));
  sweep.first_row = first_row;
  sweep.without_diagonal = without_diagonal != 0;
  sweep.diagonal = diagonal;
  sweep.scale = &scale;
  sweep.row_sums = row_sums;
  sweep.row_offsets = row_offsets;
  sweep.column_sums = column_sums;
  sweep.column_offsets = column_offsets;
  const Matrix left{x, x_rows, width, bfloat16 != 0}, right{y, y_rows, width, bfloat16 != 0};
  try {
    for (int cluster = 0; cluster < clusters; ++cluster) run_cluster(sweep, left, right, cluster, clusters, seed, static_cast<Fault>(fault));
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // extern "C"
