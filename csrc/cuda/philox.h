// SPDX-License-Identifier: Apache-2.0
// Philox-4x32 with ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random bits as a function of a counter
// and a key, so that any thread draws its own numbers and any machine draws the same.
#pragma once

#include "host_device.h"

namespace clipkit {

struct PhiloxCounter {
  uint32_t words[4];
};

CLIPKIT_HOST_DEVICE inline PhiloxCounter philox(PhiloxCounter counter, uint64_t key) {
  auto low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = static_cast<uint64_t>(counter.words[0]) * 0xd2511f53u, odd = static_cast<uint64_t>(counter.words[2]) * 0xcd9e8d57u;
    counter = {{static_cast<uint32_t>(odd >> 32) ^ counter.words[1] ^ low, static_cast<uint32_t>(odd),
                static_cast<uint32_t>(even >> 32) ^ counter.words[3] ^ high, static_cast<uint32_t>(even)}};
    low += 0x9e3779b9u;
    high += 0xbb67ae85u;
  }
  return counter;
}

}  // namespace clipkit
