// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace clipkit {

// The number of CUDA devices this process sees; 0 also where there is no driver.
int device_count();

}  // namespace clipkit
