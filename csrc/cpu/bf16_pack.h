// SPDX-License-Identifier: Apache-2.0
// Panels out of row-major matrices (the layout is in bf16_kernels.h). Any row stride and alignment; what lies past an edge becomes zero.
#pragma once

#include <cstdint>

namespace clipkit {

// Up to 32 lines [lines, depth], contracted along depth, as a left panel of ceil(depth / 32) blocks.
void pack_left(const uint16_t* source, int64_t stride, int64_t lines, int64_t depth, unsigned char* panel);

// The same as a right panel.
void pack_right(const uint16_t* source, int64_t stride, int64_t lines, int64_t depth, unsigned char* panel);

// Up to 32 lines [lines, width], contracted along the lines: one block for each right panel of 32 columns. Panels lie `panel_bytes` apart.
void pack_right_across(const uint16_t* source, int64_t stride, int64_t lines, int64_t width, unsigned char* block, int64_t panel_bytes);

// Up to 32 rows of fp32 weights [rows, depth], rounded to the nearest bf16, as a left panel of ceil(depth / 32) blocks.
void pack_weights(const float* source, int64_t stride, int64_t rows, int64_t depth, unsigned char* panel);

// Up to 32 columns of fp32 weights [depth, columns] as a left panel: the product contracts the rows.
void pack_weights_transposed(const float* source, int64_t stride, int64_t columns, int64_t depth, unsigned char* panel);

}  // namespace clipkit
