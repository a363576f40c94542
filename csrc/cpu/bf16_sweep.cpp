// SPDX-License-Identifier: Apache-2.0
#include "cpu/bf16_sweep.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#include "cpu/bf16_lines.h"
#include "cpu/scratch.h"
#include "cpu/passes.h"

namespace clipkit {
namespace {

constexpr int64_t kTileRows = 512;
constexpr int64_t kWidestBand = 512;  // a tile takes 1 MiB of fp32, a packed band of 512 columns 512 deep half of one
constexpr int64_t kNarrowestBand = 128;
constexpr int64_t kFewestBands = 8;  // small forms are cut finer, so that threads have something to share

int64_t band_width(int64_t columns) {
  const int64_t even = (columns / kFewestBands + kBf16Panel - 1) / kBf16Panel * kBf16Panel;
  return std::clamp(even, kNarrowestBand, kWidestBand);
}

// A part of a form: `rows` from `row` on, `columns` from `column` on.
struct Part {
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

// Threads take bands of columns and go down them. `make_worker()` is called on each thread; its worker has begin(band), then for every
// tile before(tile), in_turn(tile) for what adds to rows, and after(tile).
template <typename MakeWorker>
void sweep(const Bf16Form& form, const MakeWorker& make_worker) {
  const int64_t rows = form.x.rows, columns = form.y.rows, width = band_width(columns);
  const int64_t bands = (columns + width - 1) / width;
  Turns turns(bands);
  std::atomic<int64_t> next{0};
  const auto take_bands = [&](auto&& worker) {
    for (int64_t band = next++; band < bands; band = next++) {
      const int64_t column = band * width;
      Part part{0, rows, column, std::min(width, columns - column)};
      worker.begin(part);
      for (int64_t tile = 0; tile * kTileRows < rows; ++tile) {
        part.row = tile * kTileRows;
        part.rows = std::min(kTileRows, rows - part.row);
        worker.before(part);
        turns.wait(band, tile);
        worker.in_turn(part);
        turns.pass(band, tile);
        worker.after(part);
      }
    }
  };
  auto mine = make_worker();  // where memory is short, it throws before there are threads
  std::vector<std::thread> others;
  try {
    for (int64_t count = 1; count < std::min<int64_t>(form.threads, bands); ++count) {
      others.emplace_back([&] {
        try {
          take_bands(make_worker());
        } catch (const std::bad_alloc&) {  // no memory for this one: it takes no band
        }
      });
    }
  } catch (const std::exception&) {  // no more threads, or no memory for one: those that run take all bands
  }
  take_bands(mine);
  for (auto& other : others) other.join();
}

template <typename Matrix>
auto* line(const Matrix& matrix, int64_t row) { return matrix.data + row * matrix.stride; }

Bf16Matrix rows_of(const Bf16Matrix& matrix, int64_t row, int64_t rows) {
  return {line(matrix, row), matrix.stride, rows, matrix.columns};
}

// A thread's packed band of y, and its buffer for one tile of products.
class Logits {
 public:
  explicit Logits(const Bf16Form& form)
      : form_(form), packed_(scratch<unsigned char>(packed_bytes(kWidestBand, form.y.columns))),
        products_(scratch<float>(kTileRows * kWidestBand)) {}

  void begin(const Part& band) { pack_rows(rows_of(form_.y, band.column, band.columns), packed_.get(), 1); }

  void make(const Part& part) {
    tile_ = {products_.get(), part.columns, part.rows, part.columns, form_.scale};
    tile_of_products(form_.kernel, rows_of(form_.x, part.row, part.rows), packed_.get(), matrix(), 1);
  }

  const Tile& tile() const { return tile_; }
  Fp32Matrix matrix() const { return {tile_.products, tile_.stride, tile_.rows, tile_.columns}; }

 private:
  const Bf16Form& form_;
  Scratch<unsigned char> packed_;
  Scratch<float> products_;
  Tile tile_{};
};

template <typename T>
T* from(T* array, int64_t index) { return array ? array + index : nullptr; }

Positives positives_of(const Positives& positives, const Part& part) {
  return {from(positives.column, part.row), positives.first + part.column};
}

struct StatisticsWorker {
  Positives positives;
  RunningSums row, column;
  Logits logits;
  Scratch<float> of_columns = scratch<float>(2 * kWidestBand);

  void begin(const Part& band) { logits.begin(band); }
  void before(const Part& part) { logits.make(part); }
  void in_turn(const Part& part) {
    passes().statistics({logits.tile(),
                         positives_of(positives, part),
                         nullptr,
                         {row.offset + part.row, row.sum + part.row},
                         {column.offset + part.column, column.sum + part.column},
                         of_columns.get()});
  }
  void after(const Part&) {}
};

struct AnchorsWorker {
  Positives positives;
  const float* row_factor;
  RunningSums row;
  float* moment;
  Logits logits;

  void begin(const Part& band) { logits.begin(band); }
  void before(const Part& part) { logits.make(part); }
  void in_turn(const Part& part) {
    passes().anchors({logits.tile(),
                      row_factor + part.row,
                      positives_of(positives, part),
                      {row.offset + part.row, row.sum + part.row},
                      moment + part.row});
  }
  void after(const Part&) {}
};

// A positive's weight is half of all weight of its line and balances the other half, so that rounding it to bf16 moved a gradient more than
// all other weights together, and most where features have a direction in common: by 4e-3 for cosines of 0.9, by 2 % for 0.999. Positives
// are therefore left out of the tiles and added in fp32, which leaves 1e-4 to 1e-3 (5e-3 for 0.999). Gradients are bf16 numbers in the end
// and rounded by 1.7e-3 anyway. To give every line the sum of what rounding took from it, times the mean feature, brings the narrowest
// cones down to that too, but takes 4 % more time.
constexpr float kNoWeights[kTileRows] = {};

struct ProductsWorker {
  const Bf16Form& form;
  const Bf16Weights& weights;
  const Fp32Matrix& g_y;
  const Fp32Matrix& gt_x;
  Logits logits;
  Scratch<unsigned char> y_columns = scratch<unsigned char>(packed_bytes(form.y.columns, kWidestBand));
  Scratch<unsigned char> x_columns = scratch<unsigned char>(packed_bytes(form.x.columns, kTileRows));

  void begin(const Part& band) {
    logits.begin(band);
    if (g_y.data) pack_columns(rows_of(form.y, band.column, band.columns), y_columns.get(), 1);
  }

  void before(const Part& part) {
    logits.make(part);
    passes().gradient({logits.tile(), positives_of(weights.positives, part), kNoWeights, from(weights.row_offset, part.row),
                       from(weights.column_offset, part.column), from(weights.row_factor, part.row),
                       from(weights.column_factor, part.column)});
  }

  void in_turn(const Part& part) {
    if (!g_y.data) return;
    add(false, y_columns.get(), part.columns, g_y, part.row, part.rows);
    with_positives(part, [&](int64_t i, int64_t j) { add_multiple(line(g_y, i), line(form.y, j), weights.positive_weight[i], g_y.columns); });
  }

  void after(const Part& part) {
    if (!gt_x.data) return;
    pack_columns(rows_of(form.x, part.row, part.rows), x_columns.get(), 1);
    add(true, x_columns.get(), part.rows, gt_x, part.column, part.columns);
    with_positives(part, [&](int64_t i, int64_t j) { add_multiple(line(gt_x, j), line(form.x, i), weights.positive_weight[i], gt_x.columns); });
  }

  void add(bool transposed, const unsigned char* packed, int64_t depth, const Fp32Matrix& out, int64_t row, int64_t rows) const {
    const Fp32Matrix part{line(out, row), out.stride, rows, out.columns};
    add_weighted_rows(form.kernel, logits.matrix(), transposed, packed, packed_bytes(kBf16Panel, depth), part, 1);
  }

  // body(row, its positive's column) for the positives in a part of the form.
  template <typename Body>
  void with_positives(const Part& part, const Body& body) const {
    if (!weights.positives.column) return;
    for (int64_t i = part.row; i < part.row + part.rows; ++i) {
      const int64_t j = weights.positives.column[i] - weights.positives.first;
      if (j >= part.column && j < part.column + part.columns) body(i, j);
    }
  }
};

}  // namespace

void bf16_statistics(const Bf16Form& form, Positives positives, RunningSums row, RunningSums column) {
  sweep(form, [&] { return StatisticsWorker{positives, row, column, Logits(form)}; });
}

void bf16_anchors(const Bf16Form& form, Positives positives, const float* row_factor, RunningSums row, float* moment) {
  sweep(form, [&] { return AnchorsWorker{positives, row_factor, row, moment, Logits(form)}; });
}

void bf16_products(const Bf16Form& form, const Bf16Weights& weights, const Fp32Matrix& g_y, const Fp32Matrix& gt_x) {
  sweep(form, [&] { return ProductsWorker{form, weights, g_y, gt_x, Logits(form)}; });
}

}  // namespace clipkit
