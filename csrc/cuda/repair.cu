// SPDX-License-Identifier: Apache-2.0
#include "cuda/repair.h"

#include "cuda/launch.h"

template const char* clipkit::run_on_device(const RepairLines<float>&, void*);
template const char* clipkit::run_on_device(const RepairLines<Half>&, void*);
template const char* clipkit::run_on_device(const RepairLines<Bfloat16>&, void*);
template const char* clipkit::run_on_device(const RepairFinish&, void*);
