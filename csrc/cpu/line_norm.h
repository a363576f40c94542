// SPDX-License-Identifier: Apache-2.0
// LayerNorm of a line that another operation makes, and its gradient. A line stays in the first-level cache between its passes (2048
// numbers are 8 KiB), so what it costs is what is read from beyond and written there.
#pragma once

#include <cmath>

#include "cpu/elements.h"
#include "cpu/lines.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

// make(j, lanes) gives the line's numbers, once each and in order; put(j, lanes, y) takes the normalised ones. The variance is that of
// differences from the mean: sums of squares would lose it where the mean is large.
template <typename Make, typename Put>
CLIPKIT_INLINE void normalise(const Norm& norm, int64_t i, Make make, Put put) {
  float* line = norm.scratch;
  const float count = static_cast<float>(norm.hidden);
  Floats total = {};
  along(norm.hidden, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    const Floats x = lanes.keep(make(j, lanes));
    lanes.store(line + j, x);
    total += x;
  });
  const float mean = sum(total) / count;
  Floats squares = {};
  along(norm.hidden, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    const Floats away = lanes.keep(lanes.load(line + j) - mean);
    squares += away * away;
  });
  const float rstd = 1.0f / sqrtf(sum(squares) / count + norm.eps);
  along(norm.hidden, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    put(j, lanes, (lanes.load(line + j) - mean) * rstd * lanes.load(norm.weight + j) + lanes.load(norm.bias + j));
  });
  norm.mean[i] = mean;
  norm.rstd[i] = rstd;
}

// make(j, lanes) gives the line that was normalised, grad(j, lanes) the gradient of what came out; put(j, lanes, d) takes the line's. With
// z = (x - mean) rstd and g = weight grad: d = rstd (g - <g> - z <g z>), where <> is the mean over the line.
template <typename Make, typename Grad, typename Put>
CLIPKIT_INLINE void gradient_of_norm(const NormGradients& norm, int64_t i, Make make, Grad grad, Put put) {
  float* line = norm.scratch;
  const float count = static_cast<float>(norm.hidden), mean = norm.mean[i], rstd = norm.rstd[i];
  Floats total = {}, moment = {};
  along(norm.hidden, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    const Floats z = (make(j, lanes) - mean) * rstd, incoming = grad(j, lanes), g = incoming * lanes.load(norm.weight + j);
    lanes.store(line + j, z);
    total += g;  // weights beyond the line are loaded as zero
    moment += lanes.keep(g * z);
    lanes.store(norm.d_weight + j, lanes.load(norm.d_weight + j) + incoming * z);
    lanes.store(norm.d_bias + j, lanes.load(norm.d_bias + j) + incoming);
  });
  const float average = sum(total) / count, slope = sum(moment) / count;
  along(norm.hidden, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    const Floats g = grad(j, lanes) * lanes.load(norm.weight + j);
    put(j, lanes, rstd * (g - average - lanes.load(line + j) * slope));
  });
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
