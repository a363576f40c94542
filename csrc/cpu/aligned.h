// SPDX-License-Identifier: Apache-2.0
// Scratch memory that begins with a cache line, so that no vector or tile row straddles two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace clipkit {

constexpr std::align_val_t kCacheLine{64};

template <typename Element>
struct FreeAligned {
  void operator()(Element* memory) const { ::operator delete(memory, kCacheLine); }
};

template <typename Element>
using Aligned = std::unique_ptr<Element[], FreeAligned<Element>>;

// `count` numbers, not initialised.
template <typename Element>
Aligned<Element> aligned(int64_t count) {
  return Aligned<Element>(static_cast<Element*>(::operator new(static_cast<std::size_t>(count) * sizeof(Element), kCacheLine)));
}

}  // namespace clipkit
