// SPDX-License-Identifier: Apache-2.0
// The sm_90a instructions that C++ has no words for, one function each: barriers of asynchronous copies, bulk tensor copies, warpgroup matrix
// multiplies, register budgets. Names follow the PTX manual. Shared addresses are the 32-bit ones of the shared window.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace clipkit::hopper::ptx {

__device__ inline uint32_t shared_address(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of both blocks, memory made visible; a thread may come alone.
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

__device__ inline void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes the inits visible to the peer and to the copy engine.
__device__ inline void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at the barrier that has this address in the given block of the cluster.
__device__ inline void mbarrier_arrive_at(uint32_t barrier, uint32_t block) {
  asm volatile(
      "{\n\t.reg .b32 remote;\n\t"
      "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n\t}" ::"r"(barrier),
      "r"(block)
      : "memory");
}

// Until the phase of this parity has ended. The hardware sleeps inside try_wait; the loop is for its time limit.
__device__ inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "again:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra again;\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ inline void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}

// A box from global memory into this block; zeros where it lies outside. The bytes, zeros too, count on the barrier.
__device__ inline void copy_box(uint32_t to, const CUtensorMap* map, int element, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(element), "r"(row), "r"(barrier)
      : "memory");
}

// The same into every block of `blocks` (a bit each), at the same address, counted on the barrier of the same address there.
__device__ inline void copy_box_to_all(uint32_t to, const CUtensorMap* map, int element, int row, uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(element), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}

template <int kRegisters>
__device__ inline void give_registers_back() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kThreads>
__device__ inline void named_barrier_wait(uint32_t barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

template <int kThreads>
__device__ inline void named_barrier_arrive(uint32_t barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

// Registers written before are ready for the multiplies that follow.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_wait_for_all_but_one() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }

#define CLIPKIT_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define CLIPKIT_D16(i) CLIPKIT_D4(i), CLIPKIT_D4(i + 4), CLIPKIT_D4(i + 8), CLIPKIT_D4(i + 12)
#define CLIPKIT_D128 \
  CLIPKIT_D16(0), CLIPKIT_D16(16), CLIPKIT_D16(32), CLIPKIT_D16(48), CLIPKIT_D16(64), CLIPKIT_D16(80), CLIPKIT_D16(96), CLIPKIT_D16(112)
// d (+)= A Bᵀ of a warpgroup, 64 x 256 x 16, both operands in shared memory along the depth; scale-d 0 ignores the old d.
#define CLIPKIT_WGMMA(TYPES)                                                                                                  \
  asm volatile(                                                                                                               \
      "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %130, 0;\n\t"                                                                 \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPES                                                                    \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                              \
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                                                      \
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                                      \
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"                                                      \
      "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                                                      \
      "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                                                      \
      "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"                                          \
      "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127},"                                     \
      " %128, %129, add, 1, 1, 0, 0;\n\t}"                                                                                    \
      : CLIPKIT_D128                                                                                                          \
      : "l"(a), "l"(b), "r"(add))

template <typename Element>
__device__ inline void wgmma(float (&d)[128], uint64_t a, uint64_t b, int add);

template <>
__device__ inline void wgmma<__nv_bfloat16>(float (&d)[128], uint64_t a, uint64_t b, int add) {
  CLIPKIT_WGMMA("bf16.bf16");
}

template <>
__device__ inline void wgmma<__half>(float (&d)[128], uint64_t a, uint64_t b, int add) {
  CLIPKIT_WGMMA("f16.f16");
}

// The accumulators go through the wait, so that no compiler reads them before it.
__device__ inline void wgmma_wait(float (&d)[128]) { asm volatile("wgmma.wait_group.sync.aligned 0;" : CLIPKIT_D128::"memory"); }

#undef CLIPKIT_WGMMA
#undef CLIPKIT_D128
#undef CLIPKIT_D16
#undef CLIPKIT_D4

__device__ inline float exp2(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

}  // namespace clipkit::hopper::ptx
