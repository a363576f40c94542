// SPDX-License-Identifier: Apache-2.0
// All passes, compiled for the instruction set of the including file.
#pragma once

#include "cpu/lamb_passes.h"
#include "cpu/tile_anchors.h"
#include "cpu/tile_curvature.h"
#include "cpu/tile_divergence.h"
#include "cpu/tile_gradients.h"
#include "cpu/tile_sigmoid.h"
#include "cpu/tile_statistics.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

constexpr TilePasses passes_named(const char* name) {
  return {name,         tile_statistics, tile_anchors,        tile_gradient,          tile_online_softmax,
          tile_sigmoid, tile_divergence, tile_curvature_sums, tile_curvature_weights, lamb_moments, lamb_apply};
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
