// SPDX-License-Identifier: Apache-2.0
// Which of the compiled passes run: the widest that this processor can, or the ones asked for by name.
#pragma once

#include <string>
#include <vector>

#include "cpu/tile.h"

namespace clipkit {

// What this build and this processor have, widest first; "portable" is always there.
std::vector<const TilePasses*> usable_passes();

// The passes in use, for all threads.
const TilePasses& passes();

// False where no usable passes have that name.
bool use_passes(const std::string& name);

}  // namespace clipkit
