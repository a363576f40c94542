// SPDX-License-Identifier: Apache-2.0
// LAMB (You et al. 2019) for one element and for one tensor: what the CUDA kernels and the CPU's passes have in common.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace clipkit {

enum class TrustRule : int {
  nvlamb = 0,    // bias-corrected; ratio 1 for tensors without weight decay
  paper = 1,     // bias-corrected; every tensor is scaled
  deepspeed = 2  // bias correction folded into the rate, after the ratio, which is clipped to [0.01, 10]
};

// One row of the table of tensors, 64 bytes; the Python side writes it as eight 64-bit words.
struct LambTensor {
  float* weight;
  const void* gradient;
  float* mean;        // moving average of the gradient
  float* variance;    // and of its square
  void* copy;         // null, or where the rounded weights go, of the gradient's type
  const float* step;  // the number of this step, from 1
  int64_t count;
  float rate;
  float decay;
};
static_assert(sizeof(LambTensor) == 64, "the Python side writes eight words a row");

// A moving average, from a beta in double: 1 - beta and log(beta) of a beta rounded to float would be wrong by 3e-5 at 0.999.
struct LambAverage {
  float keep;
  float blend;
  float log_keep;

  static LambAverage of(double beta) {
    return {static_cast<float>(beta), static_cast<float>(1.0 - beta), static_cast<float>(std::log(beta))};
  }

  CLIPKIT_HOST_DEVICE float advance(float average, float value) const { return keep * average + blend * value; }

  // 1 - beta^step, without the cancellation of the first steps.
  CLIPKIT_HOST_DEVICE float bias(float step) const { return -expm1f(step * log_keep); }
};

// What all tensors of a step have in common.
struct LambRule {
  LambAverage mean;
  LambAverage variance;
  float eps;
  TrustRule trust;
};

// What the bias correction makes of a step: the direction is mean * mean_factor / (sqrt(variance) * deviation_factor + eps).
struct LambCorrection {
  float mean_factor;
  float deviation_factor;
  float rate_factor;

  CLIPKIT_HOST_DEVICE static LambCorrection of(const LambRule& rule, float step) {
    const float mean = rule.mean.bias(step), variance = rule.variance.bias(step);
    if (rule.trust == TrustRule::deepspeed) return {1.0f, 1.0f, sqrtf(variance) / mean};
    return {1.0f / mean, 1.0f / sqrtf(variance), 1.0f};
  }
};

CLIPKIT_HOST_DEVICE inline float trust_ratio(TrustRule rule, float decay, float weight_squares, float update_squares) {
  if (rule == TrustRule::nvlamb && decay == 0.0f) return 1.0f;
  if (weight_squares == 0.0f || update_squares == 0.0f) return 1.0f;
  const float ratio = sqrtf(weight_squares) / sqrtf(update_squares);
  if (rule != TrustRule::deepspeed) return ratio;
  return ratio < 0.01f ? 0.01f : ratio > 10.0f ? 10.0f : ratio;  // a NaN stays one
}

}  // namespace clipkit
