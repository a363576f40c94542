// SPDX-License-Identifier: Apache-2.0
// Patch dropout: for each picture an exact number of patches, uniformly without replacement, as a function of (seed, step, sample) alone;
// and the pixels of the kept patches, in the layout that the embedding multiplies. Dropped patches are never copied.
#pragma once

#include "cuda/kernel.h"
#include "cuda/philox.h"

namespace clipkit {

// One block per picture. Every patch draws 64 bits; the `keep` smallest stay, equal draws (once in 10^14 pictures of 576 patches) by patch
// number. A rank is counted against all draws: patches^2 comparisons out of shared memory are cheaper here than a sort. The kept patches come
// out in ascending order, so that the gather reads forwards.
template <int kCapacity>
struct SamplePatches {
  static constexpr int kThreads = 256;
  static constexpr int kPhases = 3;
  struct Shared {
    uint64_t draws[kCapacity];
    unsigned char kept[kCapacity];
  };

  uint64_t seed;
  uint32_t step;
  const int64_t* samples;  // [pictures]
  int64_t pictures;
  int patches;     // at most kCapacity
  int keep;        // 1 to patches
  int64_t* chosen;  // out: [pictures, keep]

  CLIPKIT_HOST_DEVICE int64_t items() const { return pictures; }
  int64_t blocks() const { return pictures; }

  CLIPKIT_HOST_DEVICE void phase(int number, int64_t picture, int thread, Shared& shared) const {
    for (int patch = thread; patch < patches; patch += kThreads) {
      if (number == 0) {
        shared.draws[patch] = draw(samples[picture], patch);
      } else if (number == 1) {
        shared.kept[patch] = smaller_than(patch, shared.draws) < keep ? 1 : 0;
      } else if (shared.kept[patch]) {
        chosen[picture * keep + kept_before(patch, shared.kept)] = patch;
      }
    }
  }

 private:
  CLIPKIT_HOST_DEVICE uint64_t draw(int64_t sample, int patch) const {
    const auto id = static_cast<uint64_t>(sample);
    const PhiloxCounter random =
        philox({{static_cast<uint32_t>(patch), step, static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32)}}, seed);
    return static_cast<uint64_t>(random.words[1]) << 32 | random.words[0];
  }

  CLIPKIT_HOST_DEVICE int smaller_than(int patch, const uint64_t* draws) const {
    int count = 0;
    for (int other = 0; other < patches; ++other)
      count += draws[other] < draws[patch] || (draws[other] == draws[patch] && other < patch) ? 1 : 0;
    return count;
  }

  CLIPKIT_HOST_DEVICE static int kept_before(int patch, const unsigned char* kept) {
    int count = 0;
    for (int other = 0; other < patch; ++other) count += kept[other];
    return count;
  }
};

constexpr int kFewPatches = 1024;   // 9 KiB of shared memory: full occupancy
constexpr int kMostPatches = 4096;  // 36 KiB

// pixels [pictures, channels, grid * size, grid * size], contiguous, to out [pictures, keep, channels * size * size]: the values of each
// chosen patch by channel, row, column. One block per kept patch; a patch number outside the grid gives zeros.
template <class Number>
struct GatherPatches {
  static constexpr int kThreads = 256;
  static constexpr int kPhases = 1;
  using Shared = Nothing;

  const Number* pixels;
  const int64_t* chosen;  // [pictures, keep]
  int64_t pictures;
  int keep;
  int channels;
  int grid;
  int size;
  Number* out;

  CLIPKIT_HOST_DEVICE int64_t items() const { return pictures * keep; }
  int64_t blocks() const { return items(); }

  CLIPKIT_HOST_DEVICE void phase(int, int64_t item, int thread, Nothing&) const {
    const int64_t side = static_cast<int64_t>(grid) * size, patch = chosen[item];
    const bool inside = patch >= 0 && patch < static_cast<int64_t>(grid) * grid;
    const int area = size * size, values = channels * area;
    const Number* corner = pixels + item / keep * channels * side * side + patch / grid * size * side + patch % grid * size;
    for (int value = thread; value < values; value += kThreads) {
      const int channel = value / area, row = value % area / size, column = value % size;
      out[item * values + value] = inside ? corner[(channel * side + row) * side + column] : Number{};
    }
  }
};

}  // namespace clipkit
