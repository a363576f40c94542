// SPDX-License-Identifier: Apache-2.0
// The portable passes over a tile as plain functions, so that a test can build them from headers with one thing broken. Arguments as in
// csrc/cpu/bindings.cpp.
#include <vector>

#include "cpu/tile.h"

namespace {

const clipkit::TilePasses& passes() { return *clipkit::portable_passes(); }

}  // namespace

extern "C" {

void tile_statistics(float* products, int64_t stride, int64_t rows, int64_t columns, float scale, const int64_t* positive, int64_t first,
                     float* positive_logit, float* row_offset, float* row_sum, float* column_offset, float* column_sum) {
  std::vector<float> scratch(2 * columns);
  passes().statistics({{products, stride, rows, columns, scale},
                       {positive, first},
                       positive_logit,
                       {row_offset, row_sum},
                       {column_offset, column_sum},
                       scratch.data()});
}

void tile_gradient(float* products, int64_t stride, int64_t rows, int64_t columns, float scale, const int64_t* positive, int64_t first,
                   const float* positive_weight, const float* row_offset, const float* row_factor, const float* column_offset,
                   const float* column_factor) {
  passes().gradient({{products, stride, rows, columns, scale}, {positive, first}, positive_weight, row_offset, column_offset, row_factor,
                     column_factor});
}

void tile_online_softmax(float* products, int64_t stride, int64_t rows, int64_t columns, float scale, const int64_t* positive, int64_t first,
                         float* positive_logit, float* row_offset, float* row_sum, float* shrink) {
  passes().online_softmax({{products, stride, rows, columns, scale}, {positive, first}, positive_logit, {row_offset, row_sum}, shrink});
}

double tile_sigmoid(float* products, int64_t stride, int64_t rows, int64_t columns, float scale, const float* bias,
                    const int64_t* target_offset, const int64_t* target_column, int64_t first, double* column_total) {
  std::vector<float> scratch(3 * columns);
  std::vector<unsigned char> seen(columns, 0);
  return passes().sigmoid({{products, stride, rows, columns, scale},
                           bias,
                           {target_offset, target_column, first},
                           column_total != nullptr,
                           column_total,
                           scratch.data(),
                           seen.data()});
}

}  // extern "C"
