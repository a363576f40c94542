// SPDX-License-Identifier: Apache-2.0
#define CLIPKIT_ISA avx2
#include "cpu/tile.h"
#if defined(__AVX2__) && defined(__FMA__)
#include "cpu/tile_passes.h"

namespace clipkit {

const TilePasses* avx2_passes() {
  static constexpr TilePasses passes = avx2::passes_named("avx2");
  return &passes;
}

}  // namespace clipkit
#else

namespace clipkit {

const TilePasses* avx2_passes() { return nullptr; }

}  // namespace clipkit
#endif
