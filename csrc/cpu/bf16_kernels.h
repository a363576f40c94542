// SPDX-License-Identifier: Apache-2.0
// Products of bf16 numbers accumulated in fp32: the instruction sets that make them, and the blocks they work on.
//
// Operands come as panels of 32 lines, cut along the contraction into blocks of 32: two tiles of 16 lines x 32, 1 KiB each, side by side.
// A left tile holds a line per row. A right tile holds a line per column, two neighbours along the contraction in one 32-bit word, as
// both instructions want it. What is missing at an edge is zero.
#pragma once

#include <cstdint>

namespace clipkit {

constexpr int64_t kBf16Panel = 32;           // lines of a panel, and numbers along the contraction in a block of it
constexpr int64_t kBf16TileBytes = 16 * 64;  // one AMX register
constexpr int64_t kBf16BlockBytes = 2 * kBf16TileBytes;

// One way to multiply panels. `enter` and `leave` bracket its use on a thread; `saved` keeps what the thread had before.
struct Bf16Kernel {
  const char* name;
  void (*enter)(unsigned char saved[64]);
  void (*leave)(const unsigned char saved[64]);
  // out [32, 32] (+)= left panel . right panel^T over `blocks` blocks; rows of `out` lie `stride` floats apart.
  void (*multiply)(const unsigned char* left, const unsigned char* right, int64_t blocks, float* out, int64_t stride, bool add);
};

// Null where the compiler did not know the instructions. To be called on processors that have them only.
const Bf16Kernel* bf16_kernel_amx();
const Bf16Kernel* bf16_kernel_avx512();

// The kernels that run here, fastest first; null past the last one.
const Bf16Kernel* bf16_kernel(int rank);

}  // namespace clipkit
