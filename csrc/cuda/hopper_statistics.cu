// SPDX-License-Identifier: Apache-2.0
// Forward statistics of S = scale * X Yᵀ on Hopper: row and column sums of exponentials in one pass over S, which is never stored. Clusters of
// two blocks share each tile of Y by multicast; in a block one producer thread keeps a ring of stages full and two warpgroups multiply 64 x 256
// products each, one doing its exponentials while the other multiplies. What the threads do is in hopper_roles.h, where things lie in hopper_tiles.h.
//
// No card has run this yet. What a multiprocessor should need for one 128 x 256 tile, predicted, in clocks, for width d:
//   tensor cores    2 * 128 * 256 * d FLOP at 4096 a clock                  16 d      8192 at d = 512, 12288 at 768
//   exponentials    32768 at 16 a clock                                               2048, half of it per warpgroup
//   maxima          32768 at 64 a clock                                                512
//   sums and FMAs   1 FMA and 2 additions a logit at 128 a clock                       768, beside the exponentials
//   shuffles        7 a thread and tile, 56 a thread and item of 8 tiles; at 32 lanes a clock   (7 + 56 / 8) * 8 = 112
//   from L2         128 rows of X and, thanks to multicast, 128 of Y:      512 d bytes in 16 d clocks = 32 bytes a clock; 48 without
//   shared memory   written 48 bytes a clock, read by wgmma (2 + 8 KB in 128 clocks) 80: 128 together, which is all there is
//   row sums out    512 bytes and 32 of offsets; column sums once an item
// So a warpgroup is away from the tensor cores for some 256 + 1024 + 220 (latencies of seven shuffles) = 1500 clocks of every 8192, and the
// other must have multiplies for that long: 1500 / (8 * 32) = 6 stages, its lag. Nine stages of 32 hold that lag; four of 64 do not, though
// they are nearly as many bytes, because a stage is loaded again only when both have read it. tools/hopper_schedule.py simulates this: the
// tensor cores are busy 0.95, 0.97, 0.97, 0.98 of the time at d = 512, 768, 1024, 1280; with four stages of 64, 0.81 to 0.91; without the lag,
// 0.73 to 0.87; without multicast at most 0.79. N = M = 65536, d = 768 is 6.6e12 FLOP: at the 800 TFLOP/s that power leaves an H100, over 0.97,
// 8.5 ms.
// To be tried first on a card: kTileDepth = 64 (copies of whole 128-byte lines), kGroupPairs, kConsumerRegisters.
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "cuda/hopper_ptx.h"
#include "cuda/hopper_statistics.h"

namespace clipkit::hopper {
namespace {

// Of 64 K registers, 168 per thread at launch: the producer gives back, the consumers hold 128 products, 64 column sums and what they compute with.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 512, "64 K registers in all");

constexpr int kStagesAlignment = 1024;  // the swizzle goes by address bits

struct Shared {
  unsigned char stages[kStages * kStageBytes];
  GroupScratch scratch[kConsumers];
  uint64_t full[kStages];
  uint64_t empty[kStages];
};
static_assert(sizeof(Shared) <= kSharedBytes, "kOtherShared is too small");

// Named barriers; 0 is __syncthreads.
enum : uint32_t { kGroupBarrier = 1, kHeadStartBarrier = kGroupBarrier + kConsumers };

// The asynchronous parts of the chip, as hopper_roles.h wants them.
template <typename Type>
struct Machine {
  Shared& shared;
  const CUtensorMap* x_map;
  const CUtensorMap* y_map;
  Seat seat;
  int first_row;

  __device__ uint32_t full(int stage) const { return ptx::shared_address(&shared.full[stage]); }
  __device__ uint32_t empty(int stage) const { return ptx::shared_address(&shared.empty[stage]); }
  __device__ uint32_t stages() const { return ptx::shared_address(shared.stages); }

  __device__ void wait_full(int stage, uint32_t parity) { ptx::mbarrier_wait(full(stage), parity); }
  __device__ void wait_empty(int stage, uint32_t parity) { ptx::mbarrier_wait(empty(stage), parity); }

  __device__ void load(int stage, int depth, int pair, int column_tile) {
    const int element = depth * kTileDepth;
    ptx::mbarrier_expect(full(stage), kStageBytes);
    ptx::copy_box(stages() + x_at(stage, 0), x_map, element, first_row + (pair * kClusterBlocks + seat.block) * kTileRows, full(stage));
    ptx::copy_box_to_all(stages() + y_at(stage, seat.block), y_map, element, column_tile * kTileColumns + seat.block * kBoxRows, full(stage),
                         (1 << kClusterBlocks) - 1);
  }

  __device__ void multiply(float (&products)[kProducts], int stage, bool start) {
    const uint64_t x = operand_descriptor(stages() + x_at(stage, seat.consumer));
    const uint64_t y = operand_descriptor(stages() + y_at(stage, 0));
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTileDepth / kMultiplyDepth; ++step)
      ptx::wgmma<Type>(products, x + step * kDescriptorPerMultiply, y + step * kDescriptorPerMultiply, !(start && step == 0));
    ptx::wgmma_commit();
  }

  __device__ void retire_previous() { ptx::wgmma_wait_for_all_but_one(); }
  __device__ void retire(float (&products)[kProducts]) { ptx::wgmma_wait(products); }

  // Every warp speaks for itself: its part of a multiply may end before another warp's.
  __device__ void release(int stage) {
    if (seat.lane < kClusterBlocks) ptx::mbarrier_arrive_at(empty(stage), seat.lane);
  }

  __device__ void grant_head_start() { ptx::named_barrier_arrive<kConsumers * kGroupThreads>(kHeadStartBarrier); }
  __device__ void await_head_start() { ptx::named_barrier_wait<kConsumers * kGroupThreads>(kHeadStartBarrier); }
  __device__ void group_barrier() { ptx::named_barrier_wait<kGroupThreads>(kGroupBarrier + seat.consumer); }
  __device__ GroupScratch& scratch() { return shared.scratch[seat.consumer]; }
  __device__ float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xFFFFFFFF, value, mask); }
  __device__ float exp2(float value) { return ptx::exp2(value); }
};

template <typename Type>
__global__ void __launch_bounds__(kBlockThreads, 1)
    sweep_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap y_map, const __grid_constant__ Sweep sweep) {
  extern __shared__ __align__(kStagesAlignment) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int group = threadIdx.x / kGroupThreads;  // 0 is the producer
  const int thread = threadIdx.x % kGroupThreads;
  const Seat seat{static_cast<int>(ptx::cluster_rank()), group - 1, thread / kWarpLanes, thread % kWarpLanes};
  const int cluster = blockIdx.x / kClusterBlocks, clusters = gridDim.x / kClusterBlocks;
  Machine<Type> machine{shared, &x_map, &y_map, seat, sweep.first_row};

  if (threadIdx.x == 0) {
    if (machine.stages() % kStagesAlignment != 0) __trap();
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(machine.full(stage), 1);
      ptx::mbarrier_init(machine.empty(stage), kWarpsThatFree);
    }
    ptx::mbarrier_init_fence();
    ptx::prefetch_tensor_map(&x_map);
    ptx::prefetch_tensor_map(&y_map);
  }
  // Nobody copies into the peer or arrives there before its barriers are.
  ptx::cluster_barrier();
  if (group == 0) {
    ptx::give_registers_back<kProducerRegisters>();
    if (thread == 0) produce(machine, sweep, cluster, clusters);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    consume(machine, sweep, seat, cluster, clusters);
  }
  // Nor does a block leave while the peer may still copy into it or arrive at its barriers.
  ptx::cluster_barrier();
}

using Kernel = void (*)(CUtensorMap, CUtensorMap, Sweep);

Kernel kernel_for(Element element) { return element == Element::kBfloat16 ? &sweep_kernel<__nv_bfloat16> : &sweep_kernel<__half>; }

// A launch of `clusters` clusters; `cluster` must live as long as what is returned.
cudaLaunchConfig_t configuration(int clusters, cudaStream_t stream, cudaLaunchAttribute& cluster) {
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kClusterBlocks, 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(clusters * kClusterBlocks);
  launch.blockDim = dim3(kBlockThreads);
  launch.dynamicSmemBytes = sizeof(Shared);
  launch.stream = stream;
  launch.attrs = &cluster;
  launch.numAttrs = 1;
  return launch;
}

cudaError_t allow_shared_memory(Kernel kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
}

// How many clusters run at once. Less than half the multiprocessors where some of a graphics cluster are left over.
cudaError_t count_clusters(Kernel kernel, int& clusters) {
  cudaLaunchAttribute cluster{};
  const auto launch = configuration(1, nullptr, cluster);
  if (const cudaError_t error = allow_shared_memory(kernel)) return error;
  return cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch);
}

// The driver's function, asked for at run time: the module loads where there is no driver.
PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
  cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  return found == cudaDriverEntryPointSuccess ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function) : nullptr;
}

// Boxes of 128 rows by a stage's depth, swizzled, zeros outside the matrix.
const char* encode(CUtensorMap& map, const Features& features, Element element) {
  const auto encoder = tensor_map_encoder();
  if (encoder == nullptr) return "the driver has no cuTensorMapEncodeTiled; it must know CUDA 12";
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(features.width), static_cast<cuuint64_t>(features.rows)};
  const cuuint64_t pitch[] = {static_cast<cuuint64_t>(features.stride) * kElementBytes};
  const cuuint32_t box[] = {kTileDepth, kBoxRows};
  const cuuint32_t steps[] = {1, 1};
  const auto type = element == Element::kBfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto swizzle = kRowBytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult result = encoder(&map, type, 2, const_cast<void*>(features.data), sizes, pitch, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                  swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver refused a tensor map; want 16-byte aligned rows";
}

const char* words(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace

const char* launch_sweep(const Features& x, const Features& y, Element element, const Sweep& sweep, void* stream) {
  const Kernel kernel = kernel_for(element);
  int clusters = 0;
  if (const char* error = words(count_clusters(kernel, clusters))) return error;
  if (clusters == 0) return "this device runs no cluster of the sweep";
  CUtensorMap x_map, y_map;
  if (const char* error = encode(x_map, x, element)) return error;
  if (const char* error = encode(y_map, y, element)) return error;
  cudaLaunchAttribute cluster{};
  const auto launch = configuration(sweep.plan.items < clusters ? sweep.plan.items : clusters, static_cast<cudaStream_t>(stream), cluster);
  return words(cudaLaunchKernelEx(&launch, kernel, x_map, y_map, sweep));
}

int resident_clusters() {
  int device = 0, major = 0, clusters = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess || major != 9) return 0;
  return count_clusters(kernel_for(Element::kBfloat16), clusters) == cudaSuccess ? clusters : 0;
}

}  // namespace clipkit::hopper
