// SPDX-License-Identifier: Apache-2.0
// LayerNorm of silu(gate) * value, and the gradients of both.
#pragma once

#include "cpu/line_norm.h"
#include "cpu/vector_functions.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

CLIPKIT_INLINE Floats logistic(Floats t) {
  const Ints positive = t > 0.0f;
  const Floats u = exponential<false>(positive ? -t : t);
  return (positive ? all(1.0f) : u) * reciprocal(1.0f + u);
}

template <typename Element>
inline void swiglu_norm_of(const SwigluNorm& work) {
  const Norm& norm = work.norm;
  for (int64_t i = norm.begin; i < norm.end; ++i) {
    const auto* gate = line_of<const Element>(work.gate, i);
    const auto* value = line_of<const Element>(work.value, i);
    auto* out = line_of<Element>(work.out, i);
    normalise(
        norm, i,
        [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
          const Floats g = load(lanes, gate + j);
          return g * logistic(g) * load(lanes, value + j);
        },
        [&](int64_t j, auto lanes, Floats y) CLIPKIT_LAMBDA { store(lanes, out + j, y); });
    memset(out + norm.hidden, 0, sizeof(Element) * (work.width - norm.hidden));
  }
}

template <typename Element>
inline void swiglu_norm_gradients_of(const SwigluNormGradients& work) {
  const NormGradients& norm = work.norm;
  float* sigmoid = norm.scratch + norm.hidden;
  for (int64_t i = norm.begin; i < norm.end; ++i) {
    const auto* grad = line_of<const Element>(work.grad, i);
    const auto* gate = line_of<const Element>(work.gate, i);
    const auto* value = line_of<const Element>(work.value, i);
    auto* d_gate = line_of<Element>(work.d_gate, i);
    auto* d_value = line_of<Element>(work.d_value, i);
    gradient_of_norm(
        norm, i,
        [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
          const Floats g = load(lanes, gate + j), s = logistic(g);
          lanes.store(sigmoid + j, s);
          return g * s * load(lanes, value + j);
        },
        [&](int64_t j, auto lanes) CLIPKIT_LAMBDA { return load(lanes, grad + j); },
        [&](int64_t j, auto lanes, Floats d) CLIPKIT_LAMBDA {
          const Floats g = load(lanes, gate + j), s = lanes.load(sigmoid + j);
          store(lanes, d_value + j, d * g * s);
          store(lanes, d_gate + j, d * load(lanes, value + j) * s * (1.0f + g * (1.0f - s)));
        });
    memset(d_gate + norm.hidden, 0, sizeof(Element) * (work.width - norm.hidden));
    memset(d_value + norm.hidden, 0, sizeof(Element) * (work.width - norm.hidden));
  }
}

inline void swiglu_norm(const SwigluNorm& work) { work.gate.wide ? swiglu_norm_of<float>(work) : swiglu_norm_of<Bf16>(work); }

inline void swiglu_norm_gradients(const SwigluNormGradients& work) {
  work.gate.wide ? swiglu_norm_gradients_of<float>(work) : swiglu_norm_gradients_of<Bf16>(work);
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
