// SPDX-License-Identifier: Apache-2.0
// The device side of kernel.h. A .cu file includes this and instantiates run_on_device for its kernels.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernel.h"

namespace clipkit {

// Half of a multiprocessor's 2048 threads is enough to hide memory; saying so leaves 64 registers to each. Without it ptxas aims at 48 and
// spills LambMoments on sm_90a.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1024 / Kernel::kThreads) run_kernel(const __grid_constant__ Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  const int64_t items = kernel.items();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
#pragma unroll
    for (int phase = 0; phase < Kernel::kPhases; ++phase) {
      kernel.phase(phase, item, static_cast<int>(threadIdx.x), shared);
      if (Kernel::kPhases > 1) __syncthreads();  // after the last phase too: the next item writes the same shared memory
    }
  }
}

template <class Kernel>
const char* run_on_device(const Kernel& kernel, void* stream) {
  constexpr int64_t kMostBlocks = INT32_MAX;  // what a grid may have; the loop over items does the rest
  const int64_t blocks = kernel.blocks() < kMostBlocks ? kernel.blocks() : kMostBlocks;
  if (blocks == 0) return nullptr;
  run_kernel<<<static_cast<unsigned>(blocks), Kernel::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(kernel);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace clipkit
