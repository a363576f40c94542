// SPDX-License-Identifier: Apache-2.0
// Python's way into csrc/cpu.
#include "bindings.h"

#include "cpu/clip_tile.h"

namespace clipkit {
namespace {

namespace py = pybind11;

void check_tile(int64_t stride, int64_t rows, int64_t columns) {
  if (rows < 0 || columns < 0) throw std::invalid_argument("rows, columns: got a negative size; want sizes of at least 0");
  if (stride < columns) throw std::invalid_argument("stride: got fewer elements than columns; want the distance between rows");
}

void tile_statistics(std::uintptr_t products, int64_t stride, int64_t rows, int64_t columns, float scale, std::uintptr_t row_offset,
                     std::uintptr_t row_sum, std::uintptr_t column_offset, std::uintptr_t column_sum) {
  check_tile(stride, rows, columns);
  const TileStatistics out{pointer<float>(row_offset, rows, "row_offset"), pointer<float>(row_sum, rows, "row_sum"),
                           pointer<float>(column_offset, columns, "column_offset"), pointer<float>(column_sum, columns, "column_sum")};
  const auto* tile = pointer<const float>(products, rows * columns, "products");
  py::gil_scoped_release release;
  clip_tile_statistics(tile, stride, rows, columns, scale, out);
}

void tile_gradient(std::uintptr_t products, int64_t stride, int64_t rows, int64_t columns, float scale, std::uintptr_t row_lse,
                   std::uintptr_t column_lse, int64_t diagonal) {
  check_tile(stride, rows, columns);
  auto* tile = pointer<float>(products, rows * columns, "products");
  const auto* rows_lse = pointer<const float>(row_lse, rows, "row_lse");
  const auto* columns_lse = pointer<const float>(column_lse, columns, "column_lse");
  py::gil_scoped_release release;
  clip_tile_gradient(tile, stride, rows, columns, scale, rows_lse, columns_lse, diagonal);
}

}  // namespace

void bind_cpu(py::module_& module) {
  module.def("clip_tile_statistics", &tile_statistics, py::arg("products"), py::arg("stride"), py::arg("rows"), py::arg("columns"),
             py::arg("scale"), py::arg("row_offset"), py::arg("row_sum"), py::arg("column_offset"), py::arg("column_sum"),
             "Row and column sums of exp(scale * product - offset) of one tile, one exponential per logit.");
  module.def("clip_tile_gradient", &tile_gradient, py::arg("products"), py::arg("stride"), py::arg("rows"), py::arg("columns"),
             py::arg("scale"), py::arg("row_lse"), py::arg("column_lse"), py::arg("diagonal"),
             "Overwrites products by exp(s - row_lse) + exp(s - column_lse) - 2 on the diagonal j == i + diagonal.");
}

}  // namespace clipkit
