// SPDX-License-Identifier: Apache-2.0
#include "cpu/passes.h"

#include <atomic>

namespace clipkit {
namespace {

#if defined(__x86_64__) || defined(__i386__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

std::atomic<const TilePasses*>& chosen() {
  static std::atomic<const TilePasses*> choice{usable_passes().front()};
  return choice;
}

}  // namespace

std::vector<const TilePasses*> usable_passes() {
  std::vector<const TilePasses*> usable;
  if (avx512_passes() && has_avx512()) usable.push_back(avx512_passes());
  if (avx2_passes() && has_avx2()) usable.push_back(avx2_passes());
  usable.push_back(portable_passes());
  return usable;
}

const TilePasses& passes() { return *chosen().load(std::memory_order_relaxed); }

bool use_passes(const std::string& name) {
  for (const TilePasses* usable : usable_passes()) {
    if (name != usable->name) continue;
    chosen().store(usable);
    return true;
  }
  return false;
}

}  // namespace clipkit
