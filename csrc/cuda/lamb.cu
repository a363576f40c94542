// SPDX-License-Identifier: Apache-2.0
#include "cuda/lamb.h"

#include "cuda/launch.h"

template const char* clipkit::run_on_device(const LambMoments<float>&, void*);
template const char* clipkit::run_on_device(const LambMoments<clipkit::Half>&, void*);
template const char* clipkit::run_on_device(const LambMoments<clipkit::Bfloat16>&, void*);
template const char* clipkit::run_on_device(const LambNorms&, void*);
template const char* clipkit::run_on_device(const LambApply<float>&, void*);
template const char* clipkit::run_on_device(const LambApply<clipkit::Half>&, void*);
template const char* clipkit::run_on_device(const LambApply<clipkit::Bfloat16>&, void*);
