// SPDX-License-Identifier: Apache-2.0
// All passes over lines, compiled for the instruction set of the including file.
#pragma once

#include "cpu/line_add_norm.h"
#include "cpu/line_rotation.h"
#include "cpu/line_swiglu_norm.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

constexpr LinePasses line_passes = {rotate, swiglu_norm, swiglu_norm_gradients, add_norm, add_post_norm, norm_gradients};

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
