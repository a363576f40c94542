// SPDX-License-Identifier: Apache-2.0
// What is added to a product with rounded weights line by line, in fp32.
#pragma once

#include <cstdint>

namespace clipkit {

// out [width] += factor * line, for a line of bf16 numbers.
void add_multiple(float* out, const uint16_t* line, float factor, int64_t width);

}  // namespace clipkit
