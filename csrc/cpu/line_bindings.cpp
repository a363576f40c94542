// SPDX-License-Identifier: Apache-2.0
// Python's way to the passes over lines.
#include "bindings.h"

#include <tuple>
#include <vector>

#include "cpu/lines.h"
#include "cpu/passes.h"

namespace clipkit {
namespace {

namespace py = pybind11;
using Address = std::uintptr_t;

// (address, elements from line to line, whether they are fp32 and not bf16); address 0: nothing.
using LineArguments = std::tuple<Address, int64_t, bool>;

Line line(const LineArguments& given) { return {reinterpret_cast<void*>(std::get<0>(given)), std::get<1>(given), std::get<2>(given)}; }

Line existing(const LineArguments& given, const char* name) {
  pointer<void>(std::get<0>(given), 1, name);
  return line(given);
}

template <typename T>
T* vector(Address address, const char* name) { return pointer<T>(address, 1, name); }

void rotate(Address from, std::tuple<int64_t, int64_t, int64_t> strides, Address to, bool wide, std::tuple<int64_t, int64_t, int64_t> shape,
            Address cosines, Address sines, Address place, int64_t begin, int64_t end) {
  const auto [picture_stride, token_stride, head_stride] = strides;
  const auto [tokens, heads, width] = shape;
  const Rotation work{vector<const void>(from, "from"), picture_stride, token_stride, head_stride, vector<void>(to, "to"), wide, tokens, heads,
                      width, vector<const float>(cosines, "cosines"), vector<const float>(sines, "sines"),
                      reinterpret_cast<const int64_t*>(place), begin, end};
  py::gil_scoped_release release;
  passes().lines.rotate(work);
}

// What every norm is given: vectors, results and lines of this call.
struct NormArguments {
  Address weight, bias;
  int64_t hidden;
  float eps;
  Address mean, rstd;

  Norm norm(int64_t begin, int64_t end, std::vector<float>& scratch) const {
    scratch.resize(hidden);
    return {vector<const float>(weight, "weight"), vector<const float>(bias, "bias"), hidden, eps, vector<float>(mean, "mean"),
            vector<float>(rstd, "rstd"), begin, end, scratch.data()};
  }
};

struct NormGradientsArguments {
  Address weight;
  int64_t hidden;
  Address mean, rstd;

  NormGradients norm(Address d_weight, Address d_bias, int64_t begin, int64_t end, std::vector<float>& scratch) const {
    scratch.resize(2 * hidden);
    return {vector<const float>(weight, "weight"), hidden, vector<const float>(mean, "mean"), vector<const float>(rstd, "rstd"),
            vector<float>(d_weight, "d_weight"), vector<float>(d_bias, "d_bias"), begin, end, scratch.data()};
  }
};

void swiglu_norm(const NormArguments& given, const LineArguments& gate, const LineArguments& value, const LineArguments& out, int64_t width,
                 int64_t begin, int64_t end) {
  std::vector<float> scratch;
  const SwigluNorm work{given.norm(begin, end, scratch), existing(gate, "gate"), existing(value, "value"), existing(out, "out"), width};
  py::gil_scoped_release release;
  passes().lines.swiglu_norm(work);
}

void swiglu_norm_gradients(const NormGradientsArguments& given, const LineArguments& grad, const LineArguments& gate,
                           const LineArguments& value, const LineArguments& d_gate, const LineArguments& d_value, int64_t width,
                           Address d_weight, Address d_bias, int64_t begin, int64_t end) {
  std::vector<float> scratch;
  const SwigluNormGradients work{given.norm(d_weight, d_bias, begin, end, scratch), existing(grad, "grad"), existing(gate, "gate"),
                                 existing(value, "value"), existing(d_gate, "d_gate"), existing(d_value, "d_value"), width};
  py::gil_scoped_release release;
  passes().lines.swiglu_norm_gradients(work);
}

void add_norm(const NormArguments& given, const LineArguments& x, const LineArguments& branch, const LineArguments& total,
              const LineArguments& normed, int64_t begin, int64_t end) {
  std::vector<float> scratch;
  const AddNorm work{given.norm(begin, end, scratch), existing(x, "x"), existing(branch, "branch"), existing(total, "total"),
                     existing(normed, "normed")};
  py::gil_scoped_release release;
  passes().lines.add_norm(work);
}

void add_post_norm(const NormArguments& given, const LineArguments& x, const LineArguments& branch, const LineArguments& out, int64_t begin,
                   int64_t end) {
  std::vector<float> scratch;
  const AddPostNorm work{given.norm(begin, end, scratch), existing(x, "x"), existing(branch, "branch"), existing(out, "out")};
  py::gil_scoped_release release;
  passes().lines.add_post_norm(work);
}

void norm_gradients(const NormGradientsArguments& given, const LineArguments& grad, const LineArguments& residual, const LineArguments& x,
                    const LineArguments& d_x, Address d_weight, Address d_bias, int64_t begin, int64_t end) {
  std::vector<float> scratch;
  const AddNormGradients work{given.norm(d_weight, d_bias, begin, end, scratch), existing(grad, "grad"), line(residual), existing(x, "x"),
                              existing(d_x, "d_x")};
  py::gil_scoped_release release;
  passes().lines.norm_gradients(work);
}

}  // namespace

void bind_lines(py::module_& module) {
  module.def("rotate", &rotate, py::arg("from"), py::arg("strides"), py::arg("to"), py::arg("wide"), py::arg("shape"), py::arg("cosines"),
             py::arg("sines"), py::arg("place"), py::arg("begin"), py::arg("end"),
             "Turn the tokens from begin to end of [n, (tokens, heads, width)]; tables [places, width] have each pair's angle twice, and "
             "sines the first of a pair with its sign turned.");
  py::class_<NormArguments>(module, "Norm", "A LayerNorm's vectors [hidden] and where its statistics go, for each line.")
      .def(py::init<Address, Address, int64_t, float, Address, Address>(), py::arg("weight"), py::arg("bias"), py::arg("hidden"),
           py::arg("eps"), py::arg("mean"), py::arg("rstd"));
  py::class_<NormGradientsArguments>(module, "NormGradients", "A LayerNorm's weight [hidden] and its statistics, of each line.")
      .def(py::init<Address, int64_t, Address, Address>(), py::arg("weight"), py::arg("hidden"), py::arg("mean"), py::arg("rstd"));
  module.def("swiglu_norm", &swiglu_norm, py::arg("norm"), py::arg("gate"), py::arg("value"), py::arg("out"), py::arg("width"),
             py::arg("begin"), py::arg("end"), "out = norm(silu(gate) * value); lines are (address, stride, whether fp32).");
  module.def("swiglu_norm_gradients", &swiglu_norm_gradients, py::arg("norm"), py::arg("grad"), py::arg("gate"), py::arg("value"),
             py::arg("d_gate"), py::arg("d_value"), py::arg("width"), py::arg("d_weight"), py::arg("d_bias"), py::arg("begin"), py::arg("end"),
             "Of gate and value; those of weight and bias are added to d_weight and d_bias.");
  module.def("add_norm", &add_norm, py::arg("norm"), py::arg("x"), py::arg("branch"), py::arg("total"), py::arg("normed"), py::arg("begin"),
             py::arg("end"), "total = x + branch, normed = norm(total).");
  module.def("add_post_norm", &add_post_norm, py::arg("norm"), py::arg("x"), py::arg("branch"), py::arg("out"), py::arg("begin"),
             py::arg("end"), "out = x + norm(branch).");
  module.def("norm_gradients", &norm_gradients, py::arg("norm"), py::arg("grad"), py::arg("residual"), py::arg("x"), py::arg("d_x"),
             py::arg("d_weight"), py::arg("d_bias"), py::arg("begin"), py::arg("end"),
             "d_x = residual + gradient of x for that of norm(x); those of weight and bias are added to d_weight and d_bias.");
}

}  // namespace clipkit
