// SPDX-License-Identifier: Apache-2.0
// Python's way into csrc/cuda. The host versions run every thread of a launch in turn and exist in every build; the device versions only in
// one made with nvcc.
#include "bindings.h"

#include "merge_line.h"
#ifdef CLIPKIT_WITH_CUDA
#include "cuda/merge.h"
#endif

namespace clipkit {
namespace {

namespace py = pybind11;

Partials partials(std::uintptr_t sums, std::uintptr_t offsets, int64_t lines, int64_t tiles, int64_t line_block, int64_t offset_line_stride,
                  int64_t offset_tile_stride, std::uintptr_t log_sum, std::uintptr_t suspect) {
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
void merge_on_cpu(const Partials& problem, int64_t threads) {
  py::gil_scoped_release release;
  for (int64_t thread = 0; thread < threads; ++thread) merge_line(thread, problem);
}

#ifdef CLIPKIT_WITH_CUDA
void merge_on_gpu(const Partials& problem, std::uintptr_t stream) {
  if (const char* error = merge_on_device(problem, reinterpret_cast<void*>(stream)))
    throw std::runtime_error(std::string("merge_partials_cuda: ") + error);
}
#endif

}  // namespace

void bind_cuda(py::module_& module) {
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

}  // namespace clipkit
