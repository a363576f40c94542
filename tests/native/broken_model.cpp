// SPDX-License-Identifier: Apache-2.0
// The portable passes over a tile, the finaliser and the repair as plain functions, so that a test can build them from headers with one
// thing broken. Arguments as in csrc/cpu/bindings.cpp and csrc/cuda/bindings.cpp; there is no stream, and features are fp32.
#include <vector>

#include "cpu/tile.h"
#include "cuda/merge.h"
#include "cuda/repair.h"

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

void merge_partials(const float* sums, const float* offsets, int64_t lines, int64_t tiles, int64_t line_block, int64_t offset_line_stride,
                    int64_t offset_tile_stride, float* log_sum, unsigned char* suspect, int64_t* list, int* listed) {
  const clipkit::Partials partials{sums,    offsets, lines, tiles,  line_block, offset_line_stride, offset_tile_stride,
                                   log_sum, suspect, list,  listed, nullptr,    nullptr};
  clipkit::run_on_host(clipkit::MergeLines(partials), {});
}

void repair_lines(const float* x, const float* y, int64_t x_stride, int64_t y_stride, int64_t lines, int64_t columns, int64_t width,
                  const float* scale, int64_t skip, int64_t diagonal, const int64_t* list, const int* listed, int64_t splits,
                  clipkit::ExpSum* partials, float* log_sum) {
  const clipkit::Suspects suspects{list, listed, lines, static_cast<int>(splits), partials};
  const clipkit::RepairLines<float> kernel{suspects, x, y, x_stride, y_stride, columns, width, scale, diagonal, skip != 0};
  clipkit::run_on_host(kernel, {});
  clipkit::run_on_host(clipkit::RepairFinish(suspects, log_sum), {});
}

}  // extern "C"
