// SPDX-License-Identifier: Apache-2.0
// LAMB (You et al. 2019) over many tensors in three launches: moments and partial norms of every chunk, norms of every tensor, and the update.
// Between the second and the third the norms [tensors, 2] may be summed over ranks that hold shards. Nothing is read back to the host: a
// device flag makes all three do nothing, and step counts, loss scale and clipping factor are read from device memory.
//
// All arithmetic is fp32 on fp32 master weights; gradients, and a copy of the weights for the model, may be 16-bit.
#pragma once

#include <cmath>

#include "cuda/kernel.h"
#include "cuda/numbers.h"
#include "lamb_rule.h"

namespace clipkit {

struct LambChunk {
  int tensor;
  int number;  // elements number * kElements and on
};

struct LambProblem {
  static constexpr int64_t kElements = 16384;  // of a chunk: 64 a thread, 1 MB of traffic a block

  const LambTensor* tensors;
  int64_t tensor_count;
  const LambChunk* chunks;
  const int* first_chunk;  // [tensor_count + 1]
  int64_t chunk_count;
  float* partials;  // [chunk_count, 2]
  float* norms;     // [tensor_count, 2]: sums of squares of weights and of updates
  const float* skip;      // null, or not zero where the step is to be left out
  const float* multiply;  // null, or the factor of every gradient
  LambRule rule;

  CLIPKIT_HOST_DEVICE bool skipped() const { return skip != nullptr && *skip != 0.0f; }
};

// A chunk's part of its tensor. Offsets within it fit 32 bits, which saves registers in the loops below.
template <class Number>
struct LambSpan {
  float* weight;
  const Number* gradient;
  float* mean;
  float* variance;
  Number* copy;
  int count;

  CLIPKIT_HOST_DEVICE static LambSpan of(const LambTensor& tensor, int number) {
    const int64_t first = number * LambProblem::kElements, rest = tensor.count - first;
    return {tensor.weight + first,
            static_cast<const Number*>(tensor.gradient) + first,
            tensor.mean + first,
            tensor.variance + first,
            tensor.copy == nullptr ? nullptr : static_cast<Number*>(tensor.copy) + first,
            static_cast<int>(rest < LambProblem::kElements ? rest : LambProblem::kElements)};
  }
};

// A thread loads this many elements before it computes with the first. Division and square root have slow paths that are calls, over which
// the compiler moves no load: one element at a time would keep 16 KB of a multiprocessor's reads in flight, less than an H100's memory needs
// (3.3 TB/s for 0.7 us, over 132 multiprocessors: 18 KB).
constexpr int kLambAtOnce = 4;

CLIPKIT_HOST_DEVICE inline float lamb_update(const LambProblem& problem, const LambCorrection& correction, float decay, float weight, float mean,
                                             float variance) {
  return mean * correction.mean_factor / (sqrtf(variance) * correction.deviation_factor + problem.rule.eps) + decay * weight;
}

// Phase 1: new moments, and each chunk's sums of squares. Every thread sums its own elements, a tree sums the threads.
template <class Number>
struct LambMoments {
  static constexpr int kThreads = 256;
  static constexpr int kPhases = 2 + tree_steps<kThreads>();
  struct Shared {
    float weight_squares[kThreads];
    float update_squares[kThreads];
  };

  LambProblem problem;

  CLIPKIT_HOST_DEVICE int64_t items() const { return problem.skipped() ? 0 : problem.chunk_count; }
  int64_t blocks() const { return problem.chunk_count; }

  CLIPKIT_HOST_DEVICE void phase(int number, int64_t item, int thread, Shared& shared) const {
    if (number == 0) {
      advance(problem.chunks[item], thread, shared);
    } else if (number < kPhases - 1) {
      tree_step<kThreads>(number - 1, thread, shared.weight_squares);
      tree_step<kThreads>(number - 1, thread, shared.update_squares);
    } else if (thread == 0) {
      problem.partials[2 * item] = shared.weight_squares[0];
      problem.partials[2 * item + 1] = shared.update_squares[0];
    }
  }

 private:
  CLIPKIT_HOST_DEVICE void advance(const LambChunk& chunk, int thread, Shared& shared) const {
    const LambTensor& tensor = problem.tensors[chunk.tensor];
    const auto span = LambSpan<Number>::of(tensor, chunk.number);
    const LambCorrection correction = LambCorrection::of(problem.rule, *tensor.step);
    const float decay = tensor.decay, factor = problem.multiply == nullptr ? 1.0f : *problem.multiply;
    float weight_squares = 0.0f, update_squares = 0.0f;
    for (int start = thread; start < span.count; start += kLambAtOnce * kThreads) {
      float gradient[kLambAtOnce] = {}, weight[kLambAtOnce] = {}, mean[kLambAtOnce] = {}, variance[kLambAtOnce] = {};
      for (int k = 0, i = start; k < kLambAtOnce; ++k, i += kThreads) {
        if (i >= span.count) break;
        gradient[k] = to_float(span.gradient[i]) * factor;
        weight[k] = span.weight[i];
        mean[k] = span.mean[i];
        variance[k] = span.variance[i];
      }
      for (int k = 0, i = start; k < kLambAtOnce; ++k, i += kThreads) {
        if (i >= span.count) break;
        span.mean[i] = mean[k] = problem.rule.mean.advance(mean[k], gradient[k]);
        span.variance[i] = variance[k] = problem.rule.variance.advance(variance[k], gradient[k] * gradient[k]);
        const float update = lamb_update(problem, correction, decay, weight[k], mean[k], variance[k]);
        weight_squares += weight[k] * weight[k];
        update_squares += update * update;
      }
    }
    shared.weight_squares[thread] = weight_squares;
    shared.update_squares[thread] = update_squares;
  }
};

// Adds up each tensor's chunks, in double: a billion weights are 61,000 chunks, and one norm decides over all of them.
struct LambNorms {
  static constexpr int kThreads = 64;
  static constexpr int kPhases = 2 + tree_steps<kThreads>();
  struct Shared {
    double weight_squares[kThreads];
    double update_squares[kThreads];
  };

  LambProblem problem;

  CLIPKIT_HOST_DEVICE int64_t items() const { return problem.skipped() ? 0 : problem.tensor_count; }
  int64_t blocks() const { return problem.tensor_count; }

  CLIPKIT_HOST_DEVICE void phase(int number, int64_t item, int thread, Shared& shared) const {
    if (number == 0) {
      double weight_squares = 0.0, update_squares = 0.0;
      for (int chunk = problem.first_chunk[item] + thread; chunk < problem.first_chunk[item + 1]; chunk += kThreads) {
        weight_squares += static_cast<double>(problem.partials[2 * chunk]);
        update_squares += static_cast<double>(problem.partials[2 * chunk + 1]);
      }
      shared.weight_squares[thread] = weight_squares;
      shared.update_squares[thread] = update_squares;
    } else if (number < kPhases - 1) {
      tree_step<kThreads>(number - 1, thread, shared.weight_squares);
      tree_step<kThreads>(number - 1, thread, shared.update_squares);
    } else if (thread == 0) {
      problem.norms[2 * item] = static_cast<float>(shared.weight_squares[0]);
      problem.norms[2 * item + 1] = static_cast<float>(shared.update_squares[0]);
    }
  }
};

// Phase 2: the update again from the moments (cheaper than having stored it), scaled by the tensor's trust ratio and taken off the weights.
template <class Number>
struct LambApply {
  static constexpr int kThreads = 256;
  static constexpr int kPhases = 1;
  using Shared = Nothing;

  LambProblem problem;

  CLIPKIT_HOST_DEVICE int64_t items() const { return problem.skipped() ? 0 : problem.chunk_count; }
  int64_t blocks() const { return problem.chunk_count; }

  CLIPKIT_HOST_DEVICE void phase(int, int64_t item, int thread, Nothing&) const {
    const LambChunk chunk = problem.chunks[item];
    const LambTensor& tensor = problem.tensors[chunk.tensor];
    const auto span = LambSpan<Number>::of(tensor, chunk.number);
    const LambCorrection correction = LambCorrection::of(problem.rule, *tensor.step);
    const float* norms = problem.norms + 2 * static_cast<int64_t>(chunk.tensor);
    const float decay = tensor.decay;
    const float rate = tensor.rate * correction.rate_factor * trust_ratio(problem.rule.trust, decay, norms[0], norms[1]);
    for (int start = thread; start < span.count; start += kLambAtOnce * kThreads) {
      float weight[kLambAtOnce] = {}, mean[kLambAtOnce] = {}, variance[kLambAtOnce] = {};
      for (int k = 0, i = start; k < kLambAtOnce; ++k, i += kThreads) {
        if (i >= span.count) break;
        weight[k] = span.weight[i];
        mean[k] = span.mean[i];
        variance[k] = span.variance[i];
      }
      for (int k = 0, i = start; k < kLambAtOnce; ++k, i += kThreads) {
        if (i >= span.count) break;
        const float stepped = weight[k] - rate * lamb_update(problem, correction, decay, weight[k], mean[k], variance[k]);
        span.weight[i] = stepped;
        if (span.copy != nullptr) from_float(stepped, span.copy[i]);
      }
    }
  }
};

}  // namespace clipkit
