// SPDX-License-Identifier: Apache-2.0
#include "cpu/bf16_sweep.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/clip_tile.h"
#include "cpu/vector_math.h"

namespace clipkit {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

constexpr int64_t kTileRows = 512;
constexpr int64_t kWidestBand = 512;  // a tile takes 1 MiB of fp32, a packed band of 512 columns 512 deep half of one
constexpr int64_t kNarrowestBand = 128;
constexpr int64_t kFewestBands = 8;  // small forms are cut finer, so that threads have something to share

int64_t band_width(int64_t columns) {
  const int64_t even = (columns / kFewestBands + kBf16Panel - 1) / kBf16Panel * kBf16Panel;
  return std::clamp(even, kNarrowestBand, kWidestBand);
}

// A tile of a form: `rows` from `row` on, `columns` from `column` on.
struct Tile {
  int64_t row, rows, column, columns;
};

// The order in which tiles of one row add to its sums: a band's turn comes when the band before it is done there. So every sum has one
// order, and its bits do not depend on the number of threads.
class Turns {
 public:
  explicit Turns(int64_t bands) : done_(static_cast<std::size_t>(bands)) {}

  void wait(int64_t band, int64_t tile) const {
    while (band > 0 && done_[band - 1].load(std::memory_order_acquire) <= tile) std::this_thread::yield();
  }
  void pass(int64_t band, int64_t tile) { done_[band].store(tile + 1, std::memory_order_release); }

 private:
  std::vector<std::atomic<int64_t>> done_;
};

// Runs `make_worker()` on each thread; a worker is called with every band that it took and has:
//   begin(tile), with the whole band as a tile; tile(tile); add_to_rows(tile), when it is its turn; end(tile).
template <typename MakeWorker>
void sweep(const Bf16Form& form, const MakeWorker& make_worker) {
  const int64_t rows = form.x.rows, columns = form.y.rows, width = band_width(columns);
  const int64_t bands = (columns + width - 1) / width;
  if (rows == 0) return;
  Turns turns(bands);
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    auto worker = make_worker();
    for (int64_t band = next++; band < bands; band = next++) {
      const int64_t column = band * width;
      Tile tile{0, rows, column, std::min(width, columns - column)};
      worker.begin(tile);
      for (int64_t index = 0; index * kTileRows < rows; ++index) {
        tile.row = index * kTileRows;
        tile.rows = std::min(kTileRows, rows - tile.row);
        worker.tile(tile);
        turns.wait(band, index);
        worker.add_to_rows(tile);
        turns.pass(band, index);
        worker.add_to_columns(tile);
      }
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t count = 1; count < std::min<int64_t>(form.threads, bands); ++count) others.emplace_back(work);
  } catch (const std::system_error&) {  // the system grants no more threads: those that run take all bands
  }
  work();
  for (auto& other : others) other.join();
}

// Sums of exponentials, each line relative to its own offset.
struct Lines {
  std::vector<float> offset, sum;
  explicit Lines(int64_t count) : offset(static_cast<std::size_t>(count), kMinusInfinity), sum(static_cast<std::size_t>(count), 0.0f) {}
};

CLIPKIT_CLONES
void merge(float* __restrict__ offset, float* __restrict__ sum, const float* __restrict__ more_offset, const float* __restrict__ more_sum,
           int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float largest = offset[i] > more_offset[i] ? offset[i] : more_offset[i];
    const float base = largest == kMinusInfinity ? 0.0f : largest;  // nothing on either side: exp(-inf) twice, not exp(-inf + inf)
    sum[i] = sum[i] * exp_fast(offset[i] - base) + more_sum[i] * exp_fast(more_offset[i] - base);
    offset[i] = largest;
  }
}

void log_sums(const float* offset, const float* sum, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = offset[i] == kMinusInfinity ? kMinusInfinity : offset[i] + std::log(sum[i]);
}

// The part of both sweeps that makes logits: a packed band of y and a buffer for one tile of products.
class Logits {
 public:
  explicit Logits(const Bf16Form& form)
      : form_(form), packed_(aligned<unsigned char>(packed_bytes(band_width(form.y.rows), form.y.columns))),
        products_(aligned<float>(kTileRows * band_width(form.y.rows))) {}

  void begin(const Tile& band) { pack_rows(rows_of(form_.y, band.column, band.columns), packed_.get(), 1); }

  Fp32Matrix make(const Tile& tile) {
    const Fp32Matrix products{products_.get(), tile.columns, tile.rows, tile.columns};
    tile_of_products(form_.kernel, rows_of(form_.x, tile.row, tile.rows), packed_.get(), products, 1);
    return products;
  }

  static Bf16Matrix rows_of(const Bf16Matrix& matrix, int64_t row, int64_t rows) {
    return {matrix.data + row * matrix.stride, matrix.stride, rows, matrix.columns};
  }

 private:
  const Bf16Form& form_;
  Aligned<unsigned char> packed_;
  Aligned<float> products_;
};

// put(i, entry) for every positive of the tile: row i of the form, its entry in the tile.
template <typename Put>
void on_positives(const Tile& tile, const Fp32Matrix& products, int64_t diagonal, const Put& put) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t j = tile.row + i + diagonal - tile.column;
    if (j >= 0 && j < tile.columns) put(tile.row + i, products.data[i * products.stride + j]);
  }
}

struct StatisticsWorker {
  const Bf16Form& form;
  bool without_positives;
  int64_t diagonal;
  Lines& rows;
  float* column_lse;
  Logits logits;
  Lines tile_rows{kTileRows}, tile_columns{kWidestBand}, columns{0};

  void begin(const Tile& band) {
    logits.begin(band);
    columns = Lines(band.columns);
  }

  void tile(const Tile& tile) {
    const Fp32Matrix products = logits.make(tile);
    if (without_positives) on_positives(tile, products, diagonal, [](int64_t, float& entry) { entry = kMinusInfinity; });
    const TileStatistics statistics{tile_rows.offset.data(), tile_rows.sum.data(), tile_columns.offset.data(), tile_columns.sum.data()};
    clip_tile_statistics(products.data, products.stride, tile.rows, tile.columns, form.scale, statistics);
  }

  void add_to_rows(const Tile& tile) {
    merge(rows.offset.data() + tile.row, rows.sum.data() + tile.row, tile_rows.offset.data(), tile_rows.sum.data(), tile.rows);
  }

  void add_to_columns(const Tile& tile) {
    merge(columns.offset.data(), columns.sum.data(), tile_columns.offset.data(), tile_columns.sum.data(), tile.columns);
    if (tile.row + tile.rows == form.x.rows) log_sums(columns.offset.data(), columns.sum.data(), tile.columns, column_lse + tile.column);
  }
};

struct ProductsWorker {
  const Bf16Form& form;
  const float* row_offset;
  const float* column_offset;
  int64_t diagonal;
  const float* diagonal_weight;
  const Fp32Matrix& g_y;
  const Fp32Matrix& gt_x;
  Logits logits;
  Aligned<unsigned char> y_columns, x_columns;
  Fp32Matrix weights{};

  void begin(const Tile& band) {
    logits.begin(band);
    if (g_y.data != nullptr) pack_columns(Logits::rows_of(form.y, band.column, band.columns), y_columns.get(), 1);
  }

  void tile(const Tile& tile) {
    weights = logits.make(tile);
    const int64_t outside = tile.columns;  // positives have their own formula
    clip_tile_gradient(weights.data, weights.stride, tile.rows, tile.columns, form.scale, row_offset + tile.row,
                       column_offset + tile.column, outside);
    on_positives(tile, weights, diagonal, [this](int64_t row, float& entry) { entry = diagonal_weight[row]; });
  }

  void add_to_rows(const Tile& tile) {
    if (g_y.data != nullptr) add(false, y_columns.get(), tile.columns, g_y, tile.row, tile.rows);
  }

  void add_to_columns(const Tile& tile) {
    if (gt_x.data == nullptr) return;
    pack_columns(Logits::rows_of(form.x, tile.row, tile.rows), x_columns.get(), 1);
    add(true, x_columns.get(), tile.rows, gt_x, tile.column, tile.columns);
  }

  void add(bool transposed, const unsigned char* packed, int64_t depth, const Fp32Matrix& out, int64_t row, int64_t rows) const {
    const Fp32Matrix part{out.data + row * out.stride, out.stride, rows, out.columns};
    add_weighted_rows(form.kernel, weights, transposed, packed, packed_bytes(kBf16Panel, depth), part, 1);
  }
};

}  // namespace

void bf16_log_sum_exps(const Bf16Form& form, bool without_positives, int64_t diagonal, float* row_lse, float* column_lse) {
  Lines rows(form.x.rows);
  std::fill_n(column_lse, form.y.rows, kMinusInfinity);
  sweep(form, [&] { return StatisticsWorker{form, without_positives, diagonal, rows, column_lse, Logits(form)}; });
  log_sums(rows.offset.data(), rows.sum.data(), form.x.rows, row_lse);
}

void bf16_exponential_products(const Bf16Form& form, const float* row_offset, const float* column_offset, int64_t diagonal,
                               const float* diagonal_weight, const Fp32Matrix& g_y, const Fp32Matrix& gt_x) {
  const int64_t width = form.y.columns;
  sweep(form, [&] {
    return ProductsWorker{form,
                          row_offset,
                          column_offset,
                          diagonal,
                          diagonal_weight,
                          g_y,
                          gt_x,
                          Logits(form),
                          aligned<unsigned char>(packed_bytes(width, kWidestBand)),
                          aligned<unsigned char>(packed_bytes(width, kTileRows))};
  });
}

}  // namespace clipkit
