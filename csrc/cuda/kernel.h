// SPDX-License-Identifier: Apache-2.0
// How the plain CUDA kernels of this room are written, so that the same lines run on a GPU and, thread after thread, on the host.
//
// A kernel is a struct of pointers and sizes, passed by value to the launch, with
//   kThreads, kPhases  threads of a block, and phases: within one no thread may read what another writes, between two all threads wait
//   Shared             what the threads of a block share; undefined when an item starts
//   blocks()           size of the grid; known to the host
//   items()            how much work there is. It may read device memory, so a flag or a list that an earlier kernel left decides how much
//                      is done without the host ever knowing. Block b takes the items b, b + blocks(), b + 2 blocks(), ...
//   phase(number, item, thread, shared)
// No result may depend on the number of blocks or on the order of threads; the tests change both.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#include "host_device.h"

namespace clipkit {

struct Nothing {};

// How the host goes through a launch: the tests run every kernel in both orders.
struct HostOrder {
  bool descending = false;
};

// Runs every thread of the launch, those past the end of the data too. Shared memory starts as NaN, which shows a read before a write.
template <class Kernel>
void run_on_host(const Kernel& kernel, HostOrder order) {
  const int64_t blocks = kernel.blocks();
  const auto shared = std::make_unique<typename Kernel::Shared>();
  for (int64_t step = 0; step < blocks; ++step) {
    const int64_t block = order.descending ? blocks - 1 - step : step;
    for (int64_t item = block; item < kernel.items(); item += blocks) {
      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(*shared));
      for (int phase = 0; phase < Kernel::kPhases; ++phase)
        for (int turn = 0; turn < Kernel::kThreads; ++turn)
          kernel.phase(phase, item, order.descending ? Kernel::kThreads - 1 - turn : turn, *shared);
    }
  }
}

// Launches on a CUDA stream (null: the default one). Returns nullptr, or CUDA's words for what went wrong. Defined in launch.h and
// instantiated by the .cu file of each kernel.
template <class Kernel>
const char* run_on_device(const Kernel& kernel, void* stream);

// A kernel in which every thread works alone on one element.
struct Elementwise {
  static constexpr int kThreads = 256;
  static constexpr int kPhases = 1;
  using Shared = Nothing;

  CLIPKIT_HOST_DEVICE static int64_t groups(int64_t elements) { return (elements + kThreads - 1) / kThreads; }
  CLIPKIT_HOST_DEVICE static int64_t element(int64_t item, int thread) { return item * kThreads + thread; }
};

// Step `step` of summing kThreads values in log2(kThreads) steps, always in the same order; the sum ends in values[0].
template <int kThreads, class Value>
CLIPKIT_HOST_DEVICE void tree_step(int step, int thread, Value* values) {
  const int half = kThreads >> (step + 1);
  if (thread < half) values[thread] += values[thread + half];
}

template <int kThreads>
constexpr int tree_steps() {
  static_assert((kThreads & (kThreads - 1)) == 0, "a tree needs a power of two");
  int steps = 0;
  for (int width = kThreads; width > 1; width /= 2) ++steps;
  return steps;
}

}  // namespace clipkit
