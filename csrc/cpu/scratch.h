// SPDX-License-Identifier: Apache-2.0
// Scratch memory of a sweep: whole pages from the system and back to it, so that what a sweep needed for a moment is not kept by an
// allocator until the process ends. It begins with a cache line, so that no vector or tile row straddles two.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace clipkit {

struct GiveBack {
  std::size_t bytes = 0;
  void operator()(void* memory) const { munmap(memory, bytes); }
};

template <typename Element>
using Scratch = std::unique_ptr<Element[], GiveBack>;

// `count` numbers.
template <typename Element>
Scratch<Element> scratch(int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count > 0 ? count : 1) * sizeof(Element);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return Scratch<Element>(static_cast<Element*>(memory), GiveBack{bytes});
}

}  // namespace clipkit
