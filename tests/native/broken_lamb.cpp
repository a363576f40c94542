// SPDX-License-Identifier: Apache-2.0
// LAMB on the portable passes as a plain function, so that a test can build it from sources with one thing broken. Arguments as in
// csrc/cpu/lamb_bindings.cpp, the gradients' type and the rule as numbers.
#define CLIPKIT_ISA portable
#include "cpu/lamb_passes.h"
#include "cpu/passes.h"

namespace clipkit {

const TilePasses& passes() {
  static const TilePasses lamb_alone = [] {
    TilePasses made{};
    made.lamb_moments = portable::lamb_moments;
    made.lamb_apply = portable::lamb_apply;
    return made;
  }();
  return lamb_alone;
}

}  // namespace clipkit

extern "C" void cpu_lamb(int phase, int type, const clipkit::LambTensor* tensors, int64_t tensor_count, float* norms, const float* skip,
                         const float* multiply, double beta1, double beta2, float eps, int rule, int threads) {
  using namespace clipkit;
  const LambStep step{tensors, tensor_count, static_cast<GradientType>(type),
                      {LambAverage::of(beta1), LambAverage::of(beta2), eps, static_cast<TrustRule>(rule)}, skip, multiply, threads};
  phase == 1 ? lamb_moments(step, norms) : lamb_apply(step, norms);
}
