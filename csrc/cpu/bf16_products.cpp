// SPDX-License-Identifier: Apache-2.0
#include "cpu/bf16_products.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/bf16_pack.h"

namespace clipkit {
namespace {

// 512 deep, a left panel takes 32 KiB of the first-level cache while right panels pass by; 16 right panels of it take half a megabyte of
// the second level. Products of tiles that exceed it fall from 1.9 to 0.9 TFLOP/s a core.
constexpr int64_t kBlocksInCache = 16;
constexpr int64_t kPanelsInCache = 16;

int64_t ceil_div(int64_t count, int64_t step) { return (count + step - 1) / step; }
int64_t panels_of(int64_t lines) { return ceil_div(lines, kBf16Panel); }

// work(first, last) over parts of [0, count), one for each thread. Whoever computes a number, it is computed alike.
template <typename Work>
void share(int64_t count, int threads, const Work& work) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count));
  std::vector<std::thread> others;
  for (int64_t part = 1; part < parts; ++part) others.emplace_back(work, count * part / parts, count * (part + 1) / parts);
  work(0, count / parts);
  for (auto& other : others) other.join();
}

class Entered {
 public:
  explicit Entered(const Bf16Kernel& kernel) : kernel_(kernel) { kernel_.enter(saved_); }
  ~Entered() { kernel_.leave(saved_); }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  const Bf16Kernel& kernel_;
  alignas(64) unsigned char saved_[64];
};

// One [32, 32] product into `out` at (row, column); what lies past its edges goes through a scratch.
void multiply_into(const Bf16Kernel& kernel, const unsigned char* left, const unsigned char* right, int64_t blocks, const Fp32Matrix& out,
                   int64_t row, int64_t column, bool add) {
  float* corner = out.data + row * out.stride + column;
  const int64_t rows = std::min(kBf16Panel, out.rows - row), columns = std::min(kBf16Panel, out.columns - column);
  if (rows == kBf16Panel && columns == kBf16Panel) return kernel.multiply(left, right, blocks, corner, out.stride, add);
  alignas(64) float scratch[kBf16Panel * kBf16Panel];
  for (int64_t i = 0; add && i < rows; ++i) std::memcpy(scratch + i * kBf16Panel, corner + i * out.stride, columns * sizeof(float));
  kernel.multiply(left, right, blocks, scratch, kBf16Panel, add);
  for (int64_t i = 0; i < rows; ++i) std::memcpy(corner + i * out.stride, scratch + i * kBf16Panel, columns * sizeof(float));
}

}  // namespace

int64_t packed_bytes(int64_t lines, int64_t depth) { return panels_of(lines) * panels_of(depth) * kBf16BlockBytes; }

void pack_rows(const Bf16Matrix& source, unsigned char* packed, int threads) {
  const int64_t panel_bytes = panels_of(source.columns) * kBf16BlockBytes;
  share(panels_of(source.rows), threads, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t row = panel * kBf16Panel;
      pack_right(source.data + row * source.stride, source.stride, source.rows - row, source.columns, packed + panel * panel_bytes);
    }
  });
}

void pack_columns(const Bf16Matrix& source, unsigned char* packed, int threads) {
  const int64_t panel_bytes = panels_of(source.rows) * kBf16BlockBytes;
  share(panels_of(source.rows), threads, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t row = block * kBf16Panel;
      pack_right_across(source.data + row * source.stride, source.stride, source.rows - row, source.columns,
                        packed + block * kBf16BlockBytes, panel_bytes);
    }
  });
}

void tile_of_products(const Bf16Kernel& kernel, const Bf16Matrix& x, const unsigned char* y, const Fp32Matrix& out, int threads) {
  const int64_t depth_blocks = panels_of(x.columns), panels = panels_of(out.columns);
  share(panels_of(x.rows), threads, [&](int64_t first_row, int64_t last_row) {
    const Entered entered(kernel);
    alignas(64) unsigned char left[kBlocksInCache * kBf16BlockBytes];
    for (int64_t near = 0; near < panels; near += kPanelsInCache) {
      const int64_t far = std::min(near + kPanelsInCache, panels);
      for (int64_t k = 0; k == 0 || k < depth_blocks; k += kBlocksInCache) {  // once at least: products of no depth are zero
        const int64_t blocks = std::min(kBlocksInCache, depth_blocks - k);
        for (int64_t row = first_row * kBf16Panel; row < std::min(last_row * kBf16Panel, x.rows); row += kBf16Panel) {
          pack_left(x.data + row * x.stride + k * kBf16Panel, x.stride, x.rows - row,
                    std::min(blocks * kBf16Panel, x.columns - k * kBf16Panel), left);
          for (int64_t panel = near; panel < far; ++panel)
            multiply_into(kernel, left, y + (panel * depth_blocks + k) * kBf16BlockBytes, blocks, out, row, panel * kBf16Panel,
                          k > 0);
        }
      }
    }
  });
}

void add_weighted_rows(const Bf16Kernel& kernel, const Fp32Matrix& weights, bool transposed, const unsigned char* y, int64_t panel_bytes,
                       const Fp32Matrix& out, int threads) {
  const int64_t depth = transposed ? weights.rows : weights.columns, depth_blocks = panels_of(depth);
  share(panels_of(out.rows), threads, [&](int64_t first_row, int64_t last_row) {
    const Entered entered(kernel);
    alignas(64) unsigned char left[kBlocksInCache * kBf16BlockBytes];
    for (int64_t k = 0; k < depth_blocks; k += kBlocksInCache) {
      const int64_t blocks = std::min(kBlocksInCache, depth_blocks - k), start = k * kBf16Panel;
      const int64_t deep = std::min(blocks * kBf16Panel, depth - start);
      for (int64_t row = first_row * kBf16Panel; row < std::min(last_row * kBf16Panel, out.rows); row += kBf16Panel) {
        if (transposed) {
          pack_weights_transposed(weights.data + start * weights.stride + row, weights.stride, out.rows - row, deep, left);
        } else {
          pack_weights(weights.data + row * weights.stride + start, weights.stride, out.rows - row, deep, left);
        }
        for (int64_t panel = 0; panel < panels_of(out.columns); ++panel)
          multiply_into(kernel, left, y + panel * panel_bytes + k * kBf16BlockBytes, blocks, out, row, panel * kBf16Panel, true);
      }
    }
  });
}

}  // namespace clipkit
