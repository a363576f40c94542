// SPDX-License-Identifier: Apache-2.0
// Rotary positions: y = x cos + (its pair's other channel) sin, the sines signed.
#pragma once

#include "cpu/elements.h"
#include "cpu/lines.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

template <typename Element>
CLIPKIT_INLINE void rotate_token(const Rotation& work, int64_t picture, int64_t token) {
  const auto* from = static_cast<const Element*>(work.from) + picture * work.picture_stride + token * work.token_stride;
  auto* to = static_cast<Element*>(work.to) + (picture * work.tokens + token) * work.heads * work.width;
  const int64_t place = token == 0 ? 0 : work.place ? work.place[picture * (work.tokens - 1) + token - 1] : token - 1;
  const float* cosines = work.cosines + place * work.width;
  const float* sines = work.sines + place * work.width;
  for (int64_t head = 0; head < work.heads; ++head, from += work.head_stride, to += work.width) {
    if (token == 0) {
      memcpy(to, from, sizeof(Element) * work.width);
      continue;
    }
    along(work.width, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
      const Floats x = load(lanes, from + j);
      store(lanes, to + j, x * lanes.load(cosines + j) + swapped_pairs(x) * lanes.load(sines + j));
    });
  }
}

inline void rotate(const Rotation& work) {
  for (int64_t i = work.begin; i < work.end; ++i) {
    if (work.wide)
      rotate_token<float>(work, i / work.tokens, i % work.tokens);
    else
      rotate_token<Bf16>(work, i / work.tokens, i % work.tokens);
  }
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
