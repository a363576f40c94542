// SPDX-License-Identifier: Apache-2.0
// LAMB's two passes over a part of a tensor, compiled for the instruction set of the including file.
#pragma once

#include "cpu/lamb.h"
#include "cpu/vector_numbers.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

constexpr int64_t kSummedInFloat = 2048;  // elements between two additions in double: 128 to 512 a lane

CLIPKIT_INLINE double sum_in_double(Floats v) {
  double total = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(v[lane]);
  return total;
}

CLIPKIT_INLINE Floats lamb_update(const LambPart& part, Floats weight, Floats mean, Floats variance) {
  const Floats deviation = square_root(variance) * part.correction.deviation_factor + part.rule.eps;
  return mean * part.correction.mean_factor / deviation + part.decay * weight;
}

template <typename Number>
LambSquares moments_of(const LambPart& part) {
  const auto* gradients = static_cast<const Number*>(part.gradient);
  const LambAverage of_mean = part.rule.mean, of_variance = part.rule.variance;
  LambSquares squares{0.0, 0.0};
  for (int64_t start = 0; start < part.count; start += kSummedInFloat) {
    const int64_t rest = part.count - start;
    Floats weight_squares = {}, update_squares = {};
    along(rest < kSummedInFloat ? rest : kSummedInFloat, [&](int64_t offset, auto lanes) CLIPKIT_LAMBDA {
      const int64_t j = start + offset;
      const Floats weight = lanes.load(part.weight + j);
      const Floats gradient = load_numbers(lanes, gradients + j) * part.multiply;
      const Floats mean = of_mean.keep * lanes.load(part.mean + j) + of_mean.blend * gradient;
      const Floats variance = of_variance.keep * lanes.load(part.variance + j) + of_variance.blend * (gradient * gradient);
      lanes.store(part.mean + j, mean);
      lanes.store(part.variance + j, variance);
      const Floats update = lanes.keep(lamb_update(part, weight, mean, variance));
      weight_squares += weight * weight;
      update_squares += update * update;
    });
    squares.weight += sum_in_double(weight_squares);
    squares.update += sum_in_double(update_squares);
  }
  return squares;
}

template <typename Number>
void apply_to(const LambPart& part) {
  auto* copies = static_cast<Number*>(part.copy);
  along(part.count, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
    const Floats weight = lanes.load(part.weight + j);
    const Floats update = lamb_update(part, weight, lanes.load(part.mean + j), lanes.load(part.variance + j));
    const Floats stepped = weight - part.rate * update;
    lanes.store(part.weight + j, stepped);
    if (copies != nullptr) store_numbers(lanes, copies + j, stepped);
  });
}

LambSquares lamb_moments(const LambPart& part) {
  return part.type == GradientType::float32   ? moments_of<float>(part)
         : part.type == GradientType::float16 ? moments_of<Half>(part)
                                              : moments_of<Bfloat16>(part);
}

void lamb_apply(const LambPart& part) {
  part.type == GradientType::float32   ? apply_to<float>(part)
  : part.type == GradientType::float16 ? apply_to<Half>(part)
                                       : apply_to<Bfloat16>(part);
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
