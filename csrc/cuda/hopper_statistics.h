// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/hopper_roles.h"

namespace clipkit::hopper {

enum class Element { kBfloat16, kHalf };

// A matrix of 16-bit elements on the device, unit stride along the width. Bulk copies want 16-byte steps: the address a multiple of 16, the
// stride of 8 elements.
struct Features {
  const void* data;
  int64_t rows;
  int64_t width;
  int64_t stride;  // elements between rows
};

constexpr int kPitchElements = 8;

// Launches the sweep on a stream of the current device; x and y whole, the sweep says which rows of x. Returns nullptr, or what went wrong.
const char* launch_sweep(const Features& x, const Features& y, Element element, const Sweep& sweep, void* stream);

// How many clusters the current device runs at once; 0 where it cannot run the sweep at all.
int resident_clusters();

}  // namespace clipkit::hopper
