// SPDX-License-Identifier: Apache-2.0
// What the bindings of all rooms share. Raw pointers come in as integers and nothing of torch is linked, so one build serves every torch
// version. The callers own shapes, dtypes and lifetimes; what can be checked without knowing a tensor is checked here.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace clipkit {

template <typename T>
T* pointer(std::uintptr_t address, int64_t count, const char* name) {
  if (address == 0 && count > 0) throw std::invalid_argument(std::string(name) + ": got a null pointer; want the address of a tensor's data");
  return reinterpret_cast<T*>(address);
}

// Each room adds its functions to the one module.
void bind_cpu(pybind11::module_& module);
void bind_bf16(pybind11::module_& module);
void bind_cpu_lamb(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);
void bind_hopper(pybind11::module_& module);

}  // namespace clipkit
