// SPDX-License-Identifier: Apache-2.0
// Python's way to LAMB's passes.
#include "bindings.h"

#include "cpu/lamb.h"

namespace clipkit {
namespace {

namespace py = pybind11;
using Address = std::uintptr_t;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

void lamb(int phase, const std::string& dtype, Address tensors, int64_t tensor_count, Address norms, Address skip, Address multiply,
          double beta1, double beta2, float eps, int rule, int threads) {
  require(phase == 1 || phase == 2, "phase: got another number; want 1 or 2");
  require(dtype == "float32" || dtype == "float16" || dtype == "bfloat16", "dtype: got an unknown name; want float32, float16 or bfloat16");
  require(tensor_count >= 0, "tensor_count: got a negative size; want at least 0");
  require(beta1 >= 0.0 && beta1 < 1.0 && beta2 >= 0.0 && beta2 < 1.0, "beta1, beta2: got a value outside [0, 1)");
  require(rule >= 0 && rule <= 2, "rule: got an unknown number; want 0 nvlamb, 1 paper or 2 deepspeed");
  const LambStep step{pointer<const LambTensor>(tensors, tensor_count, "tensors"),
                      tensor_count,
                      dtype == "float32"   ? GradientType::float32
                      : dtype == "float16" ? GradientType::float16
                                           : GradientType::bfloat16,
                      {LambAverage::of(beta1), LambAverage::of(beta2), eps, static_cast<TrustRule>(rule)},
                      pointer<const float>(skip, 0, "skip"),
                      pointer<const float>(multiply, 0, "multiply"),
                      threads};
  auto* squares = pointer<float>(norms, tensor_count, "norms");
  py::gil_scoped_release release;
  phase == 1 ? lamb_moments(step, squares) : lamb_apply(step, squares);
}

}  // namespace

void bind_cpu_lamb(py::module_& module) {
  module.def("cpu_lamb", &lamb, py::arg("phase"), py::arg("dtype"), py::arg("tensors"), py::arg("tensor_count"), py::arg("norms"),
             py::arg("skip"), py::arg("multiply"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("rule"), py::arg("threads"),
             "One phase of LAMB over many tensors in host memory whose gradients have one dtype; see csrc/cpu/lamb.h.");
}

}  // namespace clipkit
