// SPDX-License-Identifier: Apache-2.0
// clipkit._native: raw pointers as integers in, nothing of torch linked, so one build serves every torch version. The callers own shapes,
// dtypes and lifetimes; what can be checked without knowing a tensor is checked here.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/clip_tile.h"
#include "merge_line.h"
#ifdef CLIPKIT_WITH_CUDA
#include "cuda/merge.h"
#endif

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(std::uintptr_t address, int64_t count, const char* name) {
  if (address == 0 && count > 0) throw std::invalid_argument(std::string(name) + ": got a null pointer; want the address of a tensor's data");
  return reinterpret_cast<T*>(address);
}

void check_tile(int64_t stride, int64_t rows, int64_t columns) {
  if (rows < 0 || columns < 0) throw std::invalid_argument("rows, columns: got a negative size; want sizes of at least 0");
  if (stride < columns) throw std::invalid_argument("stride: got fewer elements than columns; want the distance between rows");
}

void tile_statistics(std::uintptr_t products, int64_t stride, int64_t rows, int64_t columns, float scale, std::uintptr_t row_offset,
                     std::uintptr_t row_sum, std::uintptr_t column_offset, std::uintptr_t column_sum) {
  check_tile(stride, rows, columns);
  const clipkit::TileStatistics out{pointer<float>(row_offset, rows, "row_offset"), pointer<float>(row_sum, rows, "row_sum"),
                                    pointer<float>(column_offset, columns, "column_offset"),
                                    pointer<float>(column_sum, columns, "column_sum")};
  const auto* tile = pointer<const float>(products, rows * columns, "products");
  py::gil_scoped_release release;
  clipkit::clip_tile_statistics(tile, stride, rows, columns, scale, out);
}

void tile_gradient(std::uintptr_t products, int64_t stride, int64_t rows, int64_t columns, float scale, std::uintptr_t row_lse,
                   std::uintptr_t column_lse, int64_t diagonal) {
  check_tile(stride, rows, columns);
  auto* tile = pointer<float>(products, rows * columns, "products");
  const auto* rows_lse = pointer<const float>(row_lse, rows, "row_lse");
  const auto* columns_lse = pointer<const float>(column_lse, columns, "column_lse");
  py::gil_scoped_release release;
  clipkit::clip_tile_gradient(tile, stride, rows, columns, scale, rows_lse, columns_lse, diagonal);
}

clipkit::Partials partials(std::uintptr_t sums, std::uintptr_t offsets, int64_t lines, int64_t tiles, int64_t line_block,
                           int64_t offset_line_stride, int64_t offset_tile_stride, std::uintptr_t log_sum, std::uintptr_t suspect) {
  if (lines < 0 || tiles < 0) throw std::invalid_argument("lines, tiles: got a negative size; want sizes of at least 0");
  if (line_block < 1) throw std::invalid_argument("line_block: got less than 1; want how many lines share an offset");
  return {pointer<const float>(sums, lines * tiles, "sums"),
          pointer<const float>(offsets, lines * tiles, "offsets"),
          lines,
          tiles,
          line_block,
          offset_line_stride,
          offset_tile_stride,
          pointer<float>(log_sum, lines, "log_sum"),
          pointer<unsigned char>(suspect, lines, "suspect")};
}

// Runs every thread of the CUDA launch in turn, those past the end too.
void merge_on_cpu(const clipkit::Partials& problem, int64_t threads) {
  py::gil_scoped_release release;
  for (int64_t thread = 0; thread < threads; ++thread) clipkit::merge_line(thread, problem);
}

#ifdef CLIPKIT_WITH_CUDA
void merge_on_gpu(const clipkit::Partials& problem, std::uintptr_t stream) {
  if (const char* error = clipkit::merge_on_device(problem, reinterpret_cast<void*>(stream)))
    throw std::runtime_error(std::string("merge_partials_cuda: ") + error);
}
#endif

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
#ifdef CLIPKIT_WITH_CUDA
  info["cuda"] = true;
  info["cuda_devices"] = clipkit::device_count();
#else
  info["cuda"] = false;
  info["cuda_devices"] = 0;
#endif
  info["cuda_archs"] = CLIPKIT_CUDA_ARCHS;
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "clipkit's compiled part: pointers are integers (tensor.data_ptr()), sizes and strides count elements, all data fp32.";
  module.def("build_info", &build_info, "Compiler, whether the CUDA part is inside and for which architectures, visible CUDA devices.");
  module.def("clip_tile_statistics", &tile_statistics, py::arg("products"), py::arg("stride"), py::arg("rows"), py::arg("columns"),
             py::arg("scale"), py::arg("row_offset"), py::arg("row_sum"), py::arg("column_offset"), py::arg("column_sum"),
             "Row and column sums of exp(scale * product - offset) of one tile, one exponential per logit.");
  module.def("clip_tile_gradient", &tile_gradient, py::arg("products"), py::arg("stride"), py::arg("rows"), py::arg("columns"),
             py::arg("scale"), py::arg("row_lse"), py::arg("column_lse"), py::arg("diagonal"),
             "Overwrites products by exp(s - row_lse) + exp(s - column_lse) - 2 on the diagonal j == i + diagonal.");
  module.def(
      "merge_partials",
      [](std::uintptr_t sums, std::uintptr_t offsets, int64_t lines, int64_t tiles, int64_t line_block, int64_t offset_line_stride,
         int64_t offset_tile_stride, std::uintptr_t log_sum, std::uintptr_t suspect, int64_t threads) {
        const auto problem =
            partials(sums, offsets, lines, tiles, line_block, offset_line_stride, offset_tile_stride, log_sum, suspect);
        merge_on_cpu(problem, threads < 0 ? lines : threads);
      },
      py::arg("sums"), py::arg("offsets"), py::arg("lines"), py::arg("tiles"), py::arg("line_block"), py::arg("offset_line_stride"),
      py::arg("offset_tile_stride"), py::arg("log_sum"), py::arg("suspect"), py::arg("threads") = -1,
      "Partials [tiles, lines] to log-sum-exps [lines] and suspect flags (bytes), on the CPU.");
#ifdef CLIPKIT_WITH_CUDA
  module.def(
      "merge_partials_cuda",
      [](std::uintptr_t sums, std::uintptr_t offsets, int64_t lines, int64_t tiles, int64_t line_block, int64_t offset_line_stride,
         int64_t offset_tile_stride, std::uintptr_t log_sum, std::uintptr_t suspect, std::uintptr_t stream) {
        merge_on_gpu(partials(sums, offsets, lines, tiles, line_block, offset_line_stride, offset_tile_stride, log_sum, suspect), stream);
      },
      py::arg("sums"), py::arg("offsets"), py::arg("lines"), py::arg("tiles"), py::arg("line_block"), py::arg("offset_line_stride"),
      py::arg("offset_tile_stride"), py::arg("log_sum"), py::arg("suspect"), py::arg("stream"),
      "The same on a CUDA stream (its handle as an integer), asynchronously; all pointers are device pointers.");
#endif
}
