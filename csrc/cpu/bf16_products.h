// SPDX-License-Identifier: Apache-2.0
// The three products of a sweep over tiles of X Y^T for bf16 towers: exact products, sums in fp32, nothing rounded but the weights.
#pragma once

#include <cstdint>

#include "cpu/bf16_kernels.h"

namespace clipkit {

// A row-major bf16 matrix; rows lie `stride` elements apart.
struct Bf16Matrix {
  const uint16_t* data;
  int64_t stride;
  int64_t rows;
  int64_t columns;
};

// A row-major fp32 matrix.
struct Fp32Matrix {
  float* data;
  int64_t stride;
  int64_t rows;
  int64_t columns;
};

// Bytes of a packed matrix of lines [lines, depth]: whole panels of whole blocks.
int64_t packed_bytes(int64_t lines, int64_t depth);

// Every row of `source` as a line of right panels, contracted along the columns: what `tile_of_products` multiplies with.
void pack_rows(const Bf16Matrix& source, unsigned char* packed, int threads);

// Every column of `source` as a line of right panels, contracted along the rows: what `add_weighted_rows` multiplies with.
void pack_columns(const Bf16Matrix& source, unsigned char* packed, int threads);

// out [x.rows, out.columns] = x y^T for `y` packed by `pack_rows`, beginning at the panel of out's first column.
void tile_of_products(const Bf16Kernel& kernel, const Bf16Matrix& x, const unsigned char* y, const Fp32Matrix& out, int threads);

// out += weights y, or weights^T y, the weights rounded to bf16 here. `y` was packed by `pack_columns`, its panels `panel_bytes` apart, and
// begins at the block of the first row that is contracted.
void add_weighted_rows(const Bf16Kernel& kernel, const Fp32Matrix& weights, bool transposed, const unsigned char* y, int64_t panel_bytes,
                       const Fp32Matrix& out, int threads);

}  // namespace clipkit
