// SPDX-License-Identifier: Apache-2.0
#include "cpu/lamb.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "cpu/passes.h"

namespace clipkit {
namespace {

constexpr int64_t kElements = 16384;    // of a chunk: 0.4 MB of traffic in the first pass, which hides what it costs to take one
constexpr int64_t kChunksOfThread = 8;  // at least: a thread takes 20 us to start and end, these chunks ten times as long

struct Chunk {
  int64_t tensor;
  int64_t first;
};

std::vector<Chunk> chunks_of(const LambStep& step) {
  std::vector<Chunk> chunks;
  for (int64_t tensor = 0; tensor < step.tensor_count; ++tensor)
    for (int64_t first = 0; first < step.tensors[tensor].count; first += kElements) chunks.push_back({tensor, first});
  return chunks;
}

LambPart part_of(const LambStep& step, const Chunk& chunk, float ratio) {
  const LambTensor& tensor = step.tensors[chunk.tensor];
  const LambCorrection correction = LambCorrection::of(step.rule, *tensor.step);
  const int64_t width = step.type == GradientType::float32 ? 4 : 2;
  return {tensor.weight + chunk.first,
          static_cast<const char*>(tensor.gradient) + chunk.first * width,
          tensor.mean + chunk.first,
          tensor.variance + chunk.first,
          tensor.copy == nullptr ? nullptr : static_cast<char*>(tensor.copy) + chunk.first * width,
          std::min(kElements, tensor.count - chunk.first),
          step.type,
          step.rule,
          correction,
          step.multiply == nullptr ? 1.0f : *step.multiply,
          tensor.decay,
          tensor.rate * correction.rate_factor * ratio};
}

// work(number) for every chunk, by as many threads as there are and as have something to do.
template <typename Work>
void share_out(int64_t chunks, int threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto take_chunks = [&] {
    for (int64_t number = next++; number < chunks; number = next++) work(number);
  };
  std::vector<std::thread> others;
  try {
    for (int64_t count = 1; count < std::min<int64_t>(threads, chunks / kChunksOfThread); ++count) others.emplace_back(take_chunks);
  } catch (const std::exception&) {  // no more threads: those that run take all chunks
  }
  take_chunks();
  for (auto& other : others) other.join();
}

bool skipped(const LambStep& step) { return step.skip != nullptr && *step.skip != 0.0f; }

}  // namespace

void lamb_moments(const LambStep& step, float* norms) {
  if (skipped(step)) return;
  const std::vector<Chunk> chunks = chunks_of(step);
  std::vector<LambSquares> squares(chunks.size());
  share_out(chunks.size(), step.threads,
            [&](int64_t number) { squares[number] = passes().lamb_moments(part_of(step, chunks[number], 1.0f)); });
  std::vector<LambSquares> totals(step.tensor_count, {0.0, 0.0});
  for (std::size_t number = 0; number < chunks.size(); ++number) {
    totals[chunks[number].tensor].weight += squares[number].weight;
    totals[chunks[number].tensor].update += squares[number].update;
  }
  for (int64_t tensor = 0; tensor < step.tensor_count; ++tensor) {
    norms[2 * tensor] = static_cast<float>(totals[tensor].weight);
    norms[2 * tensor + 1] = static_cast<float>(totals[tensor].update);
  }
}

void lamb_apply(const LambStep& step, const float* norms) {
  if (skipped(step)) return;
  const std::vector<Chunk> chunks = chunks_of(step);
  share_out(chunks.size(), step.threads, [&](int64_t number) {
    const Chunk& chunk = chunks[number];
    const float* squares = norms + 2 * chunk.tensor;
    const float ratio = trust_ratio(step.rule.trust, step.tensors[chunk.tensor].decay, squares[0], squares[1]);
    passes().lamb_apply(part_of(step, chunk, ratio));
  });
}

}  // namespace clipkit
