// SPDX-License-Identifier: Apache-2.0
#define CLIPKIT_ISA portable
#include "cpu/tile_passes.h"

namespace clipkit {

const TilePasses* portable_passes() {
  static constexpr TilePasses passes = portable::passes_named("portable");
  return &passes;
}

}  // namespace clipkit
