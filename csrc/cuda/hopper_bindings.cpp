// SPDX-License-Identifier: Apache-2.0
// Python's way to the Hopper statistics sweep. The plan is plain arithmetic and exists in every build; the sweep only in one made for sm_90a.
#include "bindings.h"

#include "cuda/hopper_statistics.h"

namespace clipkit {
namespace {

namespace py = pybind11;
using hopper::Element;
using hopper::Features;
using hopper::Plan;
using hopper::Sweep;

// Tile coordinates are 32-bit, and so are a row plus a diagonal and the number of an item.
constexpr int64_t kMostLines = int64_t{1} << 30;
constexpr int64_t kMostTiles = int64_t{1} << 30;

void check_sizes(int64_t rows, int64_t columns) {
  if (rows < 1 || columns < 1 || rows > kMostLines || columns > kMostLines)
    throw std::invalid_argument("rows, columns: got a size outside 1 to 2^30; want fewer lines at once");
  if (ceil_div(rows, hopper::kPairRows) * ceil_div(columns, hopper::kTileColumns) > kMostTiles)
    throw std::invalid_argument("rows, columns: got more than 2^30 tiles; want a band of fewer rows at once");
}

Features features(std::uintptr_t address, int64_t rows, int64_t width, int64_t stride, const char* name) {
  if (stride < width) throw std::invalid_argument(std::string(name) + ": got rows that overlap; want a stride of at least the width");
  if (address % 16 != 0 || stride % hopper::kPitchElements != 0)
    throw std::invalid_argument(std::string(name) + ": got rows that bulk copies cannot address; want an address that is a multiple of 16 "
                                                    "bytes and a stride that is one of 8 elements");
  return {pointer<const void>(address, rows, name), rows, width, stride};
}

py::tuple plan(int64_t rows, int64_t columns, int clusters) {
  check_sizes(rows, columns);
  if (clusters < 1) throw std::invalid_argument("clusters: got less than 1; want how many run at once");
  const Plan best = hopper::best_plan(rows, columns, clusters);
  return py::make_tuple(best.pairs_per_item, best.column_tiles, hopper::row_groups(rows), hopper::column_strips(best));
}

int clusters() {
#ifdef CLIPKIT_WITH_HOPPER
  return hopper::resident_clusters();
#else
  return 0;
#endif
}

void launch([[maybe_unused]] const Features& x, [[maybe_unused]] const Features& y, [[maybe_unused]] Element element,
            [[maybe_unused]] const Sweep& sweep, [[maybe_unused]] std::uintptr_t stream) {
#ifdef CLIPKIT_WITH_HOPPER
  if (const char* error = hopper::launch_sweep(x, y, element, sweep, reinterpret_cast<void*>(stream)))
    throw std::runtime_error(std::string("hopper_sweep: ") + error);
#else
  throw std::runtime_error("hopper_sweep: this build holds no code for sm_90a; install with CLIPKIT_BUILD_CUDA=1 and 90a among CLIPKIT_CUDA_ARCHS");
#endif
}

void sweep(const std::string& dtype, std::uintptr_t x, std::uintptr_t y, int64_t x_rows, int64_t columns, int64_t width, int64_t x_stride,
           int64_t y_stride, std::uintptr_t scale, int64_t first_row, int64_t rows, const py::object& diagonal, int pairs_per_item,
           std::uintptr_t row_sums, std::uintptr_t row_offsets, std::uintptr_t column_sums, std::uintptr_t column_offsets,
           std::uintptr_t stream) {
  check_sizes(rows, columns);
  if (x_rows > kMostLines) throw std::invalid_argument("x_rows: got more than 2^30; want fewer rows");
  if (dtype != "bfloat16" && dtype != "float16") throw std::invalid_argument("dtype: got another name; want bfloat16 or float16");
  if (width < 1 || width > kMostLines) throw std::invalid_argument("width: got a size outside 1 to 2^30");
  if (first_row < 0 || rows < 1 || first_row + rows > x_rows) throw std::invalid_argument("first_row, rows: got rows that x does not have");
  if (pairs_per_item < 1 || pairs_per_item > hopper::kMostPairsPerItem) throw std::invalid_argument("pairs_per_item: got a number outside 1 to 8");
  const int64_t off = diagonal.is_none() ? 0 : diagonal.cast<int64_t>();
  if (off <= -rows || off >= columns) throw std::invalid_argument("diagonal: got one outside the matrix; want None for none");
  Sweep problem{};
  problem.plan = hopper::plan_items(rows, columns, pairs_per_item);
  problem.rows = static_cast<int>(rows);
  problem.columns = static_cast<int>(columns);
  problem.depth_blocks = static_cast<int>(ceil_div(width, hopper::kTileDepth));
  problem.first_row = static_cast<int>(first_row);
  problem.without_diagonal = !diagonal.is_none();
  problem.diagonal = static_cast<int>(off);
  problem.scale = pointer<const float>(scale, 1, "scale");
  problem.row_sums = pointer<float>(row_sums, rows, "row_sums");
  problem.row_offsets = pointer<float>(row_offsets, rows, "row_offsets");
  problem.column_sums = pointer<float>(column_sums, columns, "column_sums");
  problem.column_offsets = pointer<float>(column_offsets, columns, "column_offsets");
  launch(features(x, x_rows, width, x_stride, "x"), features(y, columns, width, y_stride, "y"),
         dtype == "bfloat16" ? Element::kBfloat16 : Element::kHalf, problem, stream);
}

}  // namespace

void bind_hopper(py::module_& module) {
  using py::arg;
  module.attr("hopper_pitch_elements") = hopper::kPitchElements;
  module.def("hopper_clusters", &clusters, "How many clusters of the Hopper sweep the current device runs at once; 0: it cannot run it.");
  module.def("hopper_plan", &plan, arg("rows"), arg("columns"), arg("clusters"),
             "(pairs_per_item, column tiles, row groups, column strips) of the plan that so many clusters finish soonest.");
  module.def("hopper_sweep", &sweep, arg("dtype"), arg("x"), arg("y"), arg("x_rows"), arg("columns"), arg("width"), arg("x_stride"),
             arg("y_stride"), arg("scale"), arg("first_row"), arg("rows"), arg("diagonal"), arg("pairs_per_item"), arg("row_sums"),
             arg("row_offsets"), arg("column_sums"), arg("column_offsets"), arg("stream"),
             "Partial sums of some rows of scale * x y^T, to be merged: row_sums [column tiles, rows], row_offsets [row groups, column tiles], "
             "column_sums [column strips, columns], column_offsets [column strips, column tiles]. Device pointers, a CUDA stream's handle.");
}

}  // namespace clipkit
