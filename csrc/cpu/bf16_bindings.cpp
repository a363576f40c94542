// SPDX-License-Identifier: Apache-2.0
// Python's way to the products of bf16 towers.
#include "bindings.h"

#include "cpu/bf16_lines.h"
#include "cpu/bf16_products.h"
#include "cpu/bf16_sweep.h"

namespace clipkit {
namespace {

namespace py = pybind11;

const Bf16Kernel& kernel_called(const std::string& name) {
  for (int rank = 0; const Bf16Kernel* kernel = bf16_kernel(rank); ++rank)
    if (name == kernel->name) return *kernel;
  throw std::invalid_argument("kernel: got '" + name + "'; want one of bf16_kernels()");
}

template <typename Matrix, typename Element>
Matrix matrix(std::uintptr_t data, int64_t stride, int64_t rows, int64_t columns, const char* name) {
  if (rows < 0 || columns < 0) throw std::invalid_argument(std::string(name) + ": got a negative size; want sizes of at least 0");
  if (rows > 1 && stride < columns)
    throw std::invalid_argument(std::string(name) + ": got a stride of fewer elements than columns; want the distance between rows");
  return {pointer<Element>(data, rows * columns, name), stride, rows, columns};
}

Bf16Matrix bf16_matrix(std::uintptr_t data, int64_t stride, int64_t rows, int64_t columns, const char* name) {
  return matrix<Bf16Matrix, const uint16_t>(data, stride, rows, columns, name);
}

Fp32Matrix fp32_matrix(std::uintptr_t data, int64_t stride, int64_t rows, int64_t columns, const char* name) {
  return matrix<Fp32Matrix, float>(data, stride, rows, columns, name);
}

py::list kernel_names() {
  py::list names;
  for (int rank = 0; const Bf16Kernel* kernel = bf16_kernel(rank); ++rank) names.append(kernel->name);
  return names;
}

void pack(bool columns_are_lines, std::uintptr_t source, int64_t stride, int64_t rows, int64_t columns, std::uintptr_t packed,
          int threads) {
  if (bf16_kernel(0) == nullptr) throw std::invalid_argument("kernel: got none that runs here; want one of bf16_kernels()");
  const Bf16Matrix matrix = bf16_matrix(source, stride, rows, columns, "source");
  auto* panels = pointer<unsigned char>(packed, rows * columns, "packed");
  py::gil_scoped_release release;
  columns_are_lines ? pack_columns(matrix, panels, threads) : pack_rows(matrix, panels, threads);
}

void tile(const std::string& kernel, std::uintptr_t x, int64_t x_stride, int64_t rows, int64_t depth, std::uintptr_t y, int64_t columns,
          std::uintptr_t out, int64_t out_stride, int threads) {
  const Bf16Kernel& chosen = kernel_called(kernel);
  const Bf16Matrix left = bf16_matrix(x, x_stride, rows, depth, "x");
  const Fp32Matrix result = fp32_matrix(out, out_stride, rows, columns, "out");
  const auto* right = pointer<const unsigned char>(y, columns * depth, "y");
  py::gil_scoped_release release;
  tile_of_products(chosen, left, right, result, threads);
}

void add(const std::string& kernel, std::uintptr_t weights, int64_t weights_stride, int64_t rows, int64_t columns, bool transposed,
         std::uintptr_t y, int64_t panel_bytes, int64_t width, std::uintptr_t out, int64_t out_stride, int threads) {
  const Bf16Kernel& chosen = kernel_called(kernel);
  const Fp32Matrix left = fp32_matrix(weights, weights_stride, rows, columns, "weights");
  const Fp32Matrix result = fp32_matrix(out, out_stride, transposed ? columns : rows, width, "out");
  const auto* right = pointer<const unsigned char>(y, rows * columns, "y");
  py::gil_scoped_release release;
  add_weighted_rows(chosen, left, transposed, right, panel_bytes, result, threads);
}

void add_lines(std::uintptr_t data, int64_t stride, int64_t rows, int64_t width, int64_t count, std::uintptr_t source,
               std::uintptr_t target, std::uintptr_t factor, std::uintptr_t out) {
  const Bf16Matrix lines = bf16_matrix(data, stride, rows, width, "lines");
  const auto *from = pointer<const int64_t>(source, count, "source"), *to = pointer<const int64_t>(target, count, "target");
  const auto* factors = pointer<const float>(factor, count, "factor");
  auto* results = pointer<float>(out, count * width, "out");
  py::gil_scoped_release release;
  for (int64_t i = 0; i < count; ++i) add_multiple(results + to[i] * width, lines.data + from[i] * stride, factors[i], width);
}

// A tower as Python gives it: (address, row stride, rows, columns).
using Tower = std::tuple<std::uintptr_t, int64_t, int64_t, int64_t>;

Bf16Form form(const std::string& kernel, const Tower& x, const Tower& y, float scale, int threads) {
  const auto matrix_of = [](const Tower& tower, const char* name) {
    return bf16_matrix(std::get<0>(tower), std::get<1>(tower), std::get<2>(tower), std::get<3>(tower), name);
  };
  if (std::get<3>(x) != std::get<3>(y)) throw std::invalid_argument("y: got another width than x; want towers of one width");
  return {kernel_called(kernel), matrix_of(x, "x"), matrix_of(y, "y"), scale, threads};
}

void statistics(const std::string& kernel, const Tower& x, const Tower& y, float scale, std::uintptr_t positive, std::uintptr_t row_offset,
                std::uintptr_t row_sum, std::uintptr_t column_offset, std::uintptr_t column_sum, int threads) {
  const Bf16Form logits = form(kernel, x, y, scale, threads);
  const int64_t rows = logits.x.rows, columns = logits.y.rows;
  const RunningSums row{pointer<float>(row_offset, rows, "row_offset"), pointer<float>(row_sum, rows, "row_sum")};
  const RunningSums column{pointer<float>(column_offset, columns, "column_offset"), pointer<float>(column_sum, columns, "column_sum")};
  py::gil_scoped_release release;
  bf16_statistics(logits, {reinterpret_cast<const int64_t*>(positive), 0}, row, column);
}

void anchors(const std::string& kernel, const Tower& x, const Tower& y, std::uintptr_t positive, std::uintptr_t row_factor,
             std::uintptr_t row_offset, std::uintptr_t row_sum, std::uintptr_t moment, int threads) {
  const Bf16Form logits = form(kernel, x, y, 1.0f, threads);
  const int64_t rows = logits.x.rows;
  const auto* factor = pointer<const float>(row_factor, rows, "row_factor");
  const RunningSums row{pointer<float>(row_offset, rows, "row_offset"), pointer<float>(row_sum, rows, "row_sum")};
  auto* weighted = pointer<float>(moment, rows, "moment");
  py::gil_scoped_release release;
  bf16_anchors(logits, {reinterpret_cast<const int64_t*>(positive), 0}, factor, row, weighted);
}

void products(const std::string& kernel, const Tower& x, const Tower& y, float scale, std::uintptr_t positive,
              std::uintptr_t positive_weight, std::uintptr_t row_offset, std::uintptr_t row_factor, std::uintptr_t column_offset,
              std::uintptr_t column_factor, std::uintptr_t g_y, std::uintptr_t gt_x, int threads) {
  const Bf16Form logits = form(kernel, x, y, scale, threads);
  const int64_t rows = logits.x.rows, columns = logits.y.rows, width = logits.x.columns;
  if (row_offset == 0 && column_offset == 0)
    throw std::invalid_argument("row_offset, column_offset: got neither; want the offsets of at least one direction");
  const Bf16Weights weights{{reinterpret_cast<const int64_t*>(positive), 0},
                            pointer<const float>(positive_weight, positive ? rows : 0, "positive_weight"),
                            reinterpret_cast<const float*>(row_offset),
                            reinterpret_cast<const float*>(column_offset),
                            reinterpret_cast<const float*>(row_factor),
                            reinterpret_cast<const float*>(column_factor)};
  const Fp32Matrix to_x{reinterpret_cast<float*>(g_y), width, rows, width}, to_y{reinterpret_cast<float*>(gt_x), width, columns, width};
  py::gil_scoped_release release;
  bf16_products(logits, weights, to_x, to_y);
}

}  // namespace

void bind_bf16(py::module_& module) {
  module.def("bf16_kernels", &kernel_names, "What can multiply bf16 numbers here without rounding the sum, fastest first.");
  module.def("bf16_pack", &pack, py::arg("columns_are_lines"), py::arg("source"), py::arg("stride"), py::arg("rows"), py::arg("columns"),
             py::arg("packed"), py::arg("threads"),
             "Rows (for bf16_tile) or columns (for bf16_add) of a bf16 matrix as lines of panels: 32 lines x 32 a block, 2 KiB.");
  module.def("bf16_tile", &tile, py::arg("kernel"), py::arg("x"), py::arg("x_stride"), py::arg("rows"), py::arg("depth"), py::arg("y"),
             py::arg("columns"), py::arg("out"), py::arg("out_stride"), py::arg("threads"),
             "out [rows, columns] = x y^T in fp32, for bf16 x and for y's rows packed as panels.");
  module.def("bf16_add", &add, py::arg("kernel"), py::arg("weights"), py::arg("weights_stride"), py::arg("rows"), py::arg("columns"),
             py::arg("transposed"), py::arg("y"), py::arg("panel_bytes"), py::arg("width"), py::arg("out"), py::arg("out_stride"),
             py::arg("threads"),
             "out += weights y, or weights^T y, for fp32 weights [rows, columns] rounded to bf16 and y's columns packed.");
  module.def("bf16_add_lines", &add_lines, py::arg("lines"), py::arg("stride"), py::arg("rows"), py::arg("width"), py::arg("count"),
             py::arg("source"), py::arg("target"), py::arg("factor"), py::arg("out"),
             "out[target_i] += factor_i lines[source_i], in turn, for contiguous fp32 rows of `width`.");
  module.def("bf16_statistics", &statistics, py::arg("kernel"), py::arg("x"), py::arg("y"), py::arg("scale"), py::arg("positive"),
             py::arg("row_offset"), py::arg("row_sum"), py::arg("column_offset"), py::arg("column_sum"), py::arg("threads"),
             "tile_statistics over all tiles of scale x y^T; a tower is (address, row stride, rows, columns).");
  module.def("bf16_anchors", &anchors, py::arg("kernel"), py::arg("x"), py::arg("y"), py::arg("positive"), py::arg("row_factor"),
             py::arg("row_offset"), py::arg("row_sum"), py::arg("moment"), py::arg("threads"), "tile_anchors over all tiles of x y^T.");
  module.def("bf16_products", &products, py::arg("kernel"), py::arg("x"), py::arg("y"), py::arg("scale"), py::arg("positive"),
             py::arg("positive_weight"), py::arg("row_offset"), py::arg("row_factor"), py::arg("column_offset"),
             py::arg("column_factor"), py::arg("g_y"), py::arg("gt_x"), py::arg("threads"), "g_y += G y and gt_x += G^T x, contiguous, for the weights of tile_gradient; 0 leaves an array out.");
}

}  // namespace clipkit
