// SPDX-License-Identifier: Apache-2.0
#define CLIPKIT_ISA avx512
#include "cpu/tile.h"
#if defined(__AVX512F__)
#include "cpu/tile_passes.h"

namespace clipkit {

const TilePasses* avx512_passes() {
  static constexpr TilePasses passes = avx512::passes_named("avx512");
  return &passes;
}

}  // namespace clipkit
#else

namespace clipkit {

const TilePasses* avx512_passes() { return nullptr; }

}  // namespace clipkit
#endif
