// SPDX-License-Identifier: Apache-2.0
// Residual sums with the LayerNorm that follows them or that one of their terms passes through.
#pragma once

#include "cpu/line_norm.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

template <typename X, typename Branch>
inline void add_norm_of(const AddNorm& work) {
  for (int64_t i = work.norm.begin; i < work.norm.end; ++i) {
    const auto* x = line_of<const X>(work.x, i);
    const auto* branch = line_of<const Branch>(work.branch, i);
    auto* total = line_of<X>(work.total, i);
    auto* normed = line_of<Branch>(work.normed, i);
    normalise(
        work.norm, i,
        [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
          const Floats sum = load(lanes, x + j) + load(lanes, branch + j);
          store(lanes, total + j, sum);
          return as_stored(total, sum);
        },
        [&](int64_t j, auto lanes, Floats y) CLIPKIT_LAMBDA { store(lanes, normed + j, y); });
  }
}

template <typename X, typename Branch>
inline void add_post_norm_of(const AddPostNorm& work) {
  for (int64_t i = work.norm.begin; i < work.norm.end; ++i) {
    const auto* x = line_of<const X>(work.x, i);
    const auto* branch = line_of<const Branch>(work.branch, i);
    auto* out = line_of<X>(work.out, i);
    normalise(
        work.norm, i, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA { return load(lanes, branch + j); },
        [&](int64_t j, auto lanes, Floats y) CLIPKIT_LAMBDA { store(lanes, out + j, load(lanes, x + j) + y); });
  }
}

template <typename Grad, typename X>
inline void norm_gradients_of(const AddNormGradients& work) {
  for (int64_t i = work.norm.begin; i < work.norm.end; ++i) {
    const auto* grad = line_of<const Grad>(work.grad, i);
    const auto* x = line_of<const X>(work.x, i);
    const auto* residual = work.residual.first ? line_of<const X>(work.residual, i) : nullptr;
    auto* d_x = line_of<X>(work.d_x, i);
    gradient_of_norm(
        work.norm, i, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA { return load(lanes, x + j); },
        [&](int64_t j, auto lanes) CLIPKIT_LAMBDA { return load(lanes, grad + j); },
        [&](int64_t j, auto lanes, Floats d) CLIPKIT_LAMBDA { store(lanes, d_x + j, residual ? d + load(lanes, residual + j) : d); });
  }
}

inline void add_norm(const AddNorm& work) {
  if (work.branch.wide) return add_norm_of<float, float>(work);
  work.x.wide ? add_norm_of<float, Bf16>(work) : add_norm_of<Bf16, Bf16>(work);
}

inline void add_post_norm(const AddPostNorm& work) {
  if (work.branch.wide) return add_post_norm_of<float, float>(work);
  work.x.wide ? add_post_norm_of<float, Bf16>(work) : add_post_norm_of<Bf16, Bf16>(work);
}

inline void norm_gradients(const AddNormGradients& work) {
  if (work.grad.wide) return work.x.wide ? norm_gradients_of<float, float>(work) : norm_gradients_of<float, Bf16>(work);
  work.x.wide ? norm_gradients_of<Bf16, float>(work) : norm_gradients_of<Bf16, Bf16>(work);
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
