// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "merge_line.h"

namespace clipkit {

// Merges the partials (device pointers) on a CUDA stream, one thread per line. Returns nullptr, or CUDA's words for what went wrong.
const char* merge_on_device(const Partials& partials, void* stream);

// The number of CUDA devices this process sees; 0 also where there is no driver.
int device_count();

}  // namespace clipkit
