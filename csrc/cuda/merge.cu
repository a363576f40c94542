// SPDX-License-Identifier: Apache-2.0
#include "cuda/merge.h"

#include "cuda/launch.h"

template const char* clipkit::run_on_device(const MergeLines&, void*);
