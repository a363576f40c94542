// SPDX-License-Identifier: Apache-2.0
// What lets one body be compiled by nvcc for a GPU and by any C++ compiler for the host.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CLIPKIT_HOST_DEVICE __host__ __device__
#else
#define CLIPKIT_HOST_DEVICE
#endif

namespace clipkit {

CLIPKIT_HOST_DEVICE constexpr int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// The host runs a launch's threads one after another, so a plain access is atomic there.
CLIPKIT_HOST_DEVICE inline int atomic_increment(int* counter) {
#ifdef __CUDA_ARCH__
  return atomicAdd(counter, 1);
#else
  return (*counter)++;
#endif
}

CLIPKIT_HOST_DEVICE inline int atomic_compare_and_swap(int* address, int expected, int wanted) {
#ifdef __CUDA_ARCH__
  return atomicCAS(address, expected, wanted);
#else
  const int found = *address;
  if (found == expected) *address = wanted;
  return found;
#endif
}

CLIPKIT_HOST_DEVICE inline void atomic_minimum(int* address, int value) {
#ifdef __CUDA_ARCH__
  atomicMin(address, value);
#else
  if (value < *address) *address = value;
#endif
}

}  // namespace clipkit
