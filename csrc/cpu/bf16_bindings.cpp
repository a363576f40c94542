// SPDX-License-Identifier: Apache-2.0
// Python's way to the products of bf16 towers.
#include "bindings.h"

#include "cpu/bf16_products.h"

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
}

}  // namespace clipkit
