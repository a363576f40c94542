// SPDX-License-Identifier: Apache-2.0
// clipkit._native: one module, filled by the rooms below (cpu/bindings.cpp, cuda/bindings.cpp).
#include "bindings.h"

namespace {

namespace py = pybind11;

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
#else
  info["cuda"] = false;
#endif
  info["cuda_archs"] = CLIPKIT_CUDA_ARCHS;
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "clipkit's compiled part: pointers are integers (tensor.data_ptr()), sizes and strides count elements, data are fp32 "
                 "unless a function says otherwise.";
  module.def("build_info", &build_info, "Compiler, whether the CUDA part is inside and for which architectures. Asks no driver.");
  clipkit::bind_cpu(module);
  clipkit::bind_bf16(module);
  clipkit::bind_cpu_lamb(module);
  clipkit::bind_cuda(module);
  clipkit::bind_hopper(module);
}
