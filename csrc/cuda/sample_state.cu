// SPDX-License-Identifier: Apache-2.0
#include "cuda/sample_state.h"

#include "cuda/launch.h"

template const char* clipkit::run_on_device(const GatherState&, void*);
template const char* clipkit::run_on_device(const AdvanceState&, void*);
template const char* clipkit::run_on_device(const ClaimRows&, void*);
template const char* clipkit::run_on_device(const ScatterState&, void*);
