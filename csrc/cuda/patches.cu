// SPDX-License-Identifier: Apache-2.0
#include "cuda/patches.h"

#include "cuda/launch.h"

template const char* clipkit::run_on_device(const SamplePatches<kFewPatches>&, void*);
template const char* clipkit::run_on_device(const SamplePatches<kMostPatches>&, void*);
template const char* clipkit::run_on_device(const GatherPatches<uint8_t>&, void*);
template const char* clipkit::run_on_device(const GatherPatches<uint16_t>&, void*);
template const char* clipkit::run_on_device(const GatherPatches<uint32_t>&, void*);
