// SPDX-License-Identifier: Apache-2.0
// The finaliser of the forward statistics: compact per-tile partials to row or column log-sum-exps. Reads lie along the lines, so every
// warp's loads are contiguous; the arithmetic (one expf per partial) hides behind them.
#include <cuda_runtime.h>

#include "cuda/merge.h"

namespace clipkit {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) merge_kernel(const Partials partials) {
  merge_line(static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, partials);
}

}  // namespace

const char* merge_on_device(const Partials& partials, void* stream) {
  if (partials.lines == 0) return nullptr;
  const auto blocks = static_cast<unsigned>((partials.lines + kThreads - 1) / kThreads);
  merge_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(partials);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace clipkit
