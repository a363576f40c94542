// SPDX-License-Identifier: Apache-2.0
// Which kernels this processor and this system can run. Compiled without their instructions, so that asking is safe anywhere.
#include "cpu/bf16_kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <unistd.h>
#endif

namespace clipkit {
namespace {

#if defined(__x86_64__) && defined(__linux__)

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  Leaf(unsigned leaf, unsigned subleaf) {
    if (!__get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx)) eax = ebx = ecx = edx = 0;
  }
};

bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

// The registers that the system saves when it switches threads.
uint64_t saved_states() {
  constexpr unsigned kOsxsave = 1u << 27;
  if (!has(Leaf(1, 0).ecx, kOsxsave)) return 0;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool has_avx512_bf16() {
  constexpr uint64_t kStates = 0xE6;  // SSE, AVX and the three parts of AVX-512
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31, kBf16 = 1u << 5;
  return (saved_states() & kStates) == kStates && has(Leaf(7, 0).ebx, kF | kDq | kBw | kVl) && has(Leaf(7, 1).eax, kBf16);
}

bool has_amx() {
  constexpr uint64_t kStates = 0x60000;  // tile shapes and tile data
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((saved_states() & kStates) != kStates || !has(Leaf(7, 0).edx, kAmxBf16 | kAmxTile)) return false;
  constexpr long kArchPrctl = 158, kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM: for all threads of the process
  return syscall(kArchPrctl, kRequestPermission, kTileData) == 0;
}

#else

bool has_avx512_bf16() { return false; }
bool has_amx() { return false; }

#endif

struct Ranking {
  const Bf16Kernel* kernels[3] = {};
  Ranking() {
    if (!has_avx512_bf16() || bf16_kernel_avx512() == nullptr) return;  // panels are packed with it whichever multiplies
    int count = 0;
    if (has_amx() && bf16_kernel_amx() != nullptr) kernels[count++] = bf16_kernel_amx();
    kernels[count] = bf16_kernel_avx512();
  }
};

}  // namespace

const Bf16Kernel* bf16_kernel(int rank) {
  static const Ranking ranking;  // made once, by whichever thread asks first
  return rank < 0 || rank > 2 ? nullptr : ranking.kernels[rank];
}

}  // namespace clipkit
