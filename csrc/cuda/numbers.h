// SPDX-License-Identifier: Apache-2.0
// The 16-bit floats in memory, and their values as float. Rounding is to nearest, ties to even: the GPU's own instruction on a device, integer
// arithmetic on a host, where compilers do not agree on a type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace clipkit {

struct Bfloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

CLIPKIT_HOST_DEVICE inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

CLIPKIT_HOST_DEVICE inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

CLIPKIT_HOST_DEVICE inline float to_float(float value) { return value; }

CLIPKIT_HOST_DEVICE inline float to_float(Bfloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

CLIPKIT_HOST_DEVICE inline float to_float(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1f, fraction = value.bits & 0x3ff;
  if (exponent == 0) return float_of(sign | bits_of(std::ldexp(static_cast<float>(fraction), -24)));
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
#endif
}

CLIPKIT_HOST_DEVICE inline void from_float(float value, float& out) { out = value; }

CLIPKIT_HOST_DEVICE inline void from_float(float value, Bfloat16& out) {
#ifdef __CUDA_ARCH__
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const uint32_t bits = bits_of(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}

CLIPKIT_HOST_DEVICE inline void from_float(float value, Half& out) {
#ifdef __CUDA_ARCH__
  out.bits = __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00;
  } else if (magnitude >= 0x477ff000u) {  // 65520: what lies half a step above the largest half becomes infinite
    result = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // below 2^-14 the step is 2^-24; adding 1/2 in float rounds there
    result = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | result);
#endif
}

}  // namespace clipkit
