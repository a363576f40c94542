// SPDX-License-Identifier: Apache-2.0
// Python's way into csrc/cpu.
#include "bindings.h"

#include <vector>

#include "cpu/passes.h"
#include "cpu/tile.h"

namespace clipkit {
namespace {

namespace py = pybind11;
using Address = std::uintptr_t;

// A tile and what its passes need of its shape, as Python hands them over.
struct TileArguments {
  Tile tile;

  TileArguments(Address products, int64_t stride, int64_t rows, int64_t columns, float scale) {
    if (rows < 0 || columns < 0) throw std::invalid_argument("rows, columns: got a negative size; want sizes of at least 0");
    if (stride < columns) throw std::invalid_argument("stride: got fewer elements than columns; want the distance between rows");
    tile = {pointer<float>(products, rows * columns, "products"), stride, rows, columns, scale};
  }

  template <typename T>
  T* of_rows(Address address, const char* name) const { return pointer<T>(address, tile.rows, name); }
  template <typename T>
  T* of_columns(Address address, const char* name) const { return pointer<T>(address, tile.columns, name); }
  // The same shape elsewhere.
  Tile beside(Address products, float scale, const char* name) const {
    return {pointer<float>(products, tile.rows * tile.columns, name), tile.stride, tile.rows, tile.columns, scale};
  }
};

// An array that may be left out.
template <typename T>
T* optional(Address address) { return reinterpret_cast<T*>(address); }

void tile_statistics(const TileArguments& given, Address positive, int64_t first, Address positive_logit, Address row_offset,
                     Address row_sum, Address column_offset, Address column_sum) {
  const RunningSums row{given.of_rows<float>(row_offset, "row_offset"), given.of_rows<float>(row_sum, "row_sum")};
  const RunningSums column{optional<float>(column_offset), optional<float>(column_sum)};
  py::gil_scoped_release release;
  std::vector<float> scratch(2 * given.tile.columns);
  passes().statistics({given.tile, {optional<const int64_t>(positive), first}, optional<float>(positive_logit), row, column, scratch.data()});
}

void tile_anchors(const TileArguments& given, Address positive, int64_t first, Address row_factor, Address row_offset, Address row_sum,
                  Address moment) {
  const auto* factor = given.of_rows<const float>(row_factor, "row_factor");
  const RunningSums row{given.of_rows<float>(row_offset, "row_offset"), given.of_rows<float>(row_sum, "row_sum")};
  auto* products = given.of_rows<float>(moment, "moment");
  py::gil_scoped_release release;
  passes().anchors({given.tile, factor, {optional<const int64_t>(positive), first}, row, products});
}

void tile_gradient(const TileArguments& given, Address positive, int64_t first, Address positive_weight, Address row_offset,
                   Address row_factor, Address column_offset, Address column_factor) {
  if (row_offset == 0 && column_offset == 0)
    throw std::invalid_argument("row_offset, column_offset: got neither; want the offsets of at least one direction");
  const auto* weight = pointer<const float>(positive_weight, positive ? given.tile.rows : 0, "positive_weight");
  py::gil_scoped_release release;
  passes().gradient({given.tile, {optional<const int64_t>(positive), first}, weight, optional<const float>(row_offset),
                     optional<const float>(column_offset), optional<const float>(row_factor), optional<const float>(column_factor)});
}

void tile_online_softmax(const TileArguments& given, Address positive, int64_t first, Address positive_logit, Address row_offset,
                         Address row_sum, Address shrink) {
  const RunningSums row{given.of_rows<float>(row_offset, "row_offset"), given.of_rows<float>(row_sum, "row_sum")};
  auto* factor = given.of_rows<float>(shrink, "shrink");
  py::gil_scoped_release release;
  passes().online_softmax({given.tile, {optional<const int64_t>(positive), first}, optional<float>(positive_logit), row, factor});
}

double tile_sigmoid(const TileArguments& given, Address bias, Address target_offset, Address target_column, int64_t first,
                    Address column_total) {
  const Tile& tile = given.tile;
  const auto* biases = given.of_columns<const float>(bias, "bias");
  const Targets targets{pointer<const int64_t>(target_offset, tile.rows + 1, "target_offset"), optional<const int64_t>(target_column), first};
  py::gil_scoped_release release;
  std::vector<float> scratch(3 * tile.columns);
  std::vector<unsigned char> seen(tile.columns, 0);
  return passes().sigmoid({tile, biases, targets, column_total != 0, optional<double>(column_total), scratch.data(), seen.data()});
}

py::tuple tile_divergence(const TileArguments& given, Address teacher, float teacher_scale, Address row_student, Address row_teacher,
                          Address column_student, Address column_teacher) {
  Divergence work{given.tile,
                  given.beside(teacher, teacher_scale, "teacher"),
                  given.of_rows<const float>(row_student, "row_student"),
                  given.of_rows<const float>(row_teacher, "row_teacher"),
                  given.of_columns<const float>(column_student, "column_student"),
                  given.of_columns<const float>(column_teacher, "column_teacher"),
                  0.0,
                  0.0};
  {
    py::gil_scoped_release release;
    passes().divergence(work);
  }
  return py::make_tuple(work.divergence, work.entropy);
}

Curvature curvature(const TileArguments& given, Address along_rows, Address along_columns, Address row_lse, Address column_lse) {
  return {given.tile, given.beside(along_rows, given.tile.scale, "along_rows"), given.beside(along_columns, given.tile.scale, "along_columns"),
          given.of_rows<const float>(row_lse, "row_lse"), given.of_columns<const float>(column_lse, "column_lse")};
}

void tile_curvature_sums(const TileArguments& given, Address along_rows, Address along_columns, Address row_lse, Address column_lse,
                         Address row_sum, Address column_sum) {
  const Curvature form = curvature(given, along_rows, along_columns, row_lse, column_lse);
  auto* rows = given.of_rows<double>(row_sum, "row_sum");
  auto* columns = given.of_columns<double>(column_sum, "column_sum");
  py::gil_scoped_release release;
  std::vector<float> scratch(given.tile.columns);
  passes().curvature_sums({form, rows, columns, scratch.data()});
}

void tile_curvature_weights(const TileArguments& given, Address along_rows, Address along_columns, Address row_lse, Address column_lse,
                            Address row_mean, Address column_mean, Address positive, int64_t first, Address row_miss, Address column_miss,
                            Address positive_weight) {
  const CurvatureWeights work{curvature(given, along_rows, along_columns, row_lse, column_lse),
                              {optional<const int64_t>(positive), first},
                              given.of_rows<const float>(row_mean, "row_mean"),
                              given.of_columns<const float>(column_mean, "column_mean"),
                              given.of_rows<const float>(row_miss, "row_miss"),
                              given.of_rows<const float>(column_miss, "column_miss"),
                              given.of_rows<const float>(positive_weight, "positive_weight")};
  py::gil_scoped_release release;
  passes().curvature_weights(work);
}

py::list instruction_sets() {
  py::list names;
  for (const TilePasses* usable : usable_passes()) names.append(usable->name);
  return names;
}

void use_instruction_set(const std::string& name) {
  if (!use_passes(name))
    throw std::invalid_argument("name: got '" + name + "'; want one of instruction_sets(), what this build and this processor have");
}

}  // namespace

void bind_cpu(py::module_& module) {
  module.def("instruction_sets", &instruction_sets, "Names of the tile passes that can run here, the widest vectors first.");
  module.def("instruction_set", [] { return passes().name; }, "The tile passes in use.");
  module.def("use_instruction_set", &use_instruction_set, py::arg("name"), "Choose the tile passes of all threads by name.");

  py::class_<TileArguments>(module, "Tile", "Products p of a tile, fp32, rows `stride` apart; logits are scale * p. Addresses of 0 leave out.")
      .def(py::init<Address, int64_t, int64_t, int64_t, float>(), py::arg("products"), py::arg("stride"), py::arg("rows"),
           py::arg("columns"), py::arg("scale"));
  module.def("tile_statistics", &tile_statistics, py::arg("tile"), py::arg("positive"), py::arg("first"), py::arg("positive_logit"),
             py::arg("row_offset"), py::arg("row_sum"), py::arg("column_offset"), py::arg("column_sum"),
             "Merge the tile's row and column sums of exp(s) into running ones (offset + log sum); positives are left out.");
  module.def("tile_anchors", &tile_anchors, py::arg("tile"), py::arg("positive"), py::arg("first"), py::arg("row_factor"),
             py::arg("row_offset"), py::arg("row_sum"), py::arg("moment"),
             "Merge the row sums of exp(row_factor p) and of p exp(row_factor p) into running ones; positives are left out.");
  module.def("tile_gradient", &tile_gradient, py::arg("tile"), py::arg("positive"), py::arg("first"), py::arg("positive_weight"),
             py::arg("row_offset"), py::arg("row_factor"), py::arg("column_offset"), py::arg("column_factor"),
             "Overwrite products by exp(s - row_offset) + exp(s - column_offset), and positives by their weights; a line's factor "
             "replaces the tile's scale.");
  module.def("tile_online_softmax", &tile_online_softmax, py::arg("tile"), py::arg("positive"), py::arg("first"),
             py::arg("positive_logit"), py::arg("row_offset"), py::arg("row_sum"), py::arg("shrink"),
             "Overwrite products by exp(s - running row offset) and tell by what sums made so far have shrunk.");
  module.def("tile_sigmoid", &tile_sigmoid, py::arg("tile"), py::arg("bias"), py::arg("target_offset"), py::arg("target_column"),
             py::arg("first"), py::arg("column_total"),
             "Sum of softplus(-z(s + bias)); with column totals (float64), products become -z sigmoid(-z(s + bias)).");
  module.def("tile_divergence", &tile_divergence, py::arg("tile"), py::arg("teacher"), py::arg("teacher_scale"), py::arg("row_student"),
             py::arg("row_teacher"), py::arg("column_student"), py::arg("column_teacher"),
             "(divergence, teacher's entropy) of the tile; the student's products become P - Pt + Q - Qt.");
  module.def("tile_curvature_sums", &tile_curvature_sums, py::arg("tile"), py::arg("along_rows"), py::arg("along_columns"),
             py::arg("row_lse"), py::arg("column_lse"), py::arg("row_sum"), py::arg("column_sum"),
             "Add P R along rows and Q R' down columns to float64 sums.");
  module.def("tile_curvature_weights", &tile_curvature_weights, py::arg("tile"), py::arg("along_rows"), py::arg("along_columns"),
             py::arg("row_lse"), py::arg("column_lse"), py::arg("row_mean"), py::arg("column_mean"), py::arg("positive"), py::arg("first"),
             py::arg("row_miss"), py::arg("column_miss"), py::arg("positive_weight"),
             "Overwrite S, R and R' by P - I, the Hessian-vector weights and Q - I (or S by P + Q - 2I where R' is R).");
}

}  // namespace clipkit
