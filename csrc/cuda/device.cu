// SPDX-License-Identifier: Apache-2.0
#include "cuda/device.h"

#include <cuda_runtime.h>

int clipkit::device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
