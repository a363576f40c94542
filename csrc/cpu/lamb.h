// SPDX-License-Identifier: Apache-2.0
// LAMB over many tensors in two passes over memory. The first advances the moments and sums the squares of weights and of updates; between
// the two, these norms may be summed over ranks that hold shards. The second makes the updates again from the moments, which is cheaper
// than having stored them, and takes them off the weights. An fp32 parameter costs 24 bytes in the first (w, g, m and v read, m and v
// written) and 16 in the second (w, m and v read, w written); composed of torch's fused Adam and list operations it is 72.
#pragma once

#include <cstdint>

#include "lamb_rule.h"

namespace clipkit {

enum class GradientType { float32, float16, bfloat16 };

// Some elements of one tensor, and what its step does with them.
struct LambPart {
  float* weight;
  const void* gradient;
  float* mean;
  float* variance;
  void* copy;  // null, or where the rounded weights go, of the gradient's type
  int64_t count;
  GradientType type;
  const LambRule& rule;
  LambCorrection correction;
  float multiply;  // the factor of every gradient
  float decay;
  float rate;      // the trust ratio included
};

struct LambSquares {
  double weight;
  double update;
};

struct LambStep {
  const LambTensor* tensors;
  int64_t tensor_count;
  GradientType type;
  LambRule rule;
  const float* skip;      // null, or not zero where the step is to be left out
  const float* multiply;  // null, or the factor of every gradient
  int threads;
};

// Either pass cuts tensors into the same chunks for any number of threads and adds up their squares in order: so are all bits the same.
void lamb_moments(const LambStep& step, float* norms);       // out: [tensor_count, 2], sums of squares of weights and of updates
void lamb_apply(const LambStep& step, const float* norms);

}  // namespace clipkit
