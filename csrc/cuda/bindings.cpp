// SPDX-License-Identifier: Apache-2.0
// Python's way into csrc/cuda. Every function takes `stream`: a CUDA stream's handle as an integer (0: the default stream), and the pointers
// are device pointers; or None, and the threads of the same launch run one after another on the host, on host memory, in any build.
#include "bindings.h"

#include <cmath>

#include "cuda/lamb.h"
#include "cuda/merge.h"
#include "cuda/patches.h"
#include "cuda/repair.h"
#include "cuda/sample_state.h"

namespace clipkit {
namespace {

namespace py = pybind11;
using Address = std::uintptr_t;

HostOrder host_order;

template <class Kernel>
void run(const Kernel& kernel, const py::object& stream, const char* name) {
  if (stream.is_none()) {
    py::gil_scoped_release release;
    return run_on_host(kernel, host_order);
  }
#ifdef CLIPKIT_WITH_CUDA
  if (const char* error = run_on_device(kernel, reinterpret_cast<void*>(stream.cast<Address>())))
    throw std::runtime_error(std::string(name) + ": " + error);
#else
  throw std::runtime_error(std::string(name) + ": got a stream, but the CUDA part was not built; install with CLIPKIT_BUILD_CUDA=1");
#endif
}

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

void merge_partials(Address sums, Address offsets, int64_t lines, int64_t tiles, int64_t line_block, int64_t offset_line_stride,
                    int64_t offset_tile_stride, Address log_sum, Address suspect, Address list, Address listed, const py::object& stream,
                    Address before, Address after) {
  require(lines >= 0 && tiles >= 0, "lines, tiles: got a negative size; want sizes of at least 0");
  require(line_block >= 1, "line_block: got less than 1; want how many lines share an offset");
  require((list == 0) == (listed == 0), "list, listed: got one of the two; want both, or 0 for both");
  const Partials partials{pointer<const float>(sums, lines * tiles, "sums"),
                          pointer<const float>(offsets, lines * tiles, "offsets"),
                          lines,
                          tiles,
                          line_block,
                          offset_line_stride,
                          offset_tile_stride,
                          pointer<float>(log_sum, after == 0 ? lines : 0, "log_sum"),
                          pointer<unsigned char>(suspect, after == 0 ? lines : 0, "suspect"),
                          pointer<int64_t>(list, 0, "list"),
                          pointer<int>(listed, 0, "listed"),
                          pointer<const MergeState>(before, 0, "before"),
                          pointer<MergeState>(after, 0, "after")};
  run(MergeLines(partials), stream, "merge_partials");
}

template <class Number>
void repair(const Suspects& suspects, Address x, Address y, int64_t x_stride, int64_t y_stride, int64_t columns, int64_t width, Address scale,
            const py::object& diagonal, const py::object& stream) {
  const RepairLines<Number> kernel{suspects,
                                   pointer<const Number>(x, suspects.lines * width, "x"),
                                   pointer<const Number>(y, columns * width, "y"),
                                   x_stride,
                                   y_stride,
                                   columns,
                                   width,
                                   pointer<const float>(scale, 1, "scale"),
                                   diagonal.is_none() ? 0 : diagonal.cast<int64_t>(),
                                   !diagonal.is_none()};
  run(kernel, stream, "repair_lines");
}

void repair_lines(const std::string& dtype, Address x, Address y, int64_t x_stride, int64_t y_stride, int64_t lines, int64_t columns,
                  int64_t width, Address scale, const py::object& diagonal, Address list, Address listed, int splits, Address partials,
                  Address log_sum, const py::object& stream) {
  require(lines >= 0 && columns >= 0 && width >= 0, "lines, columns, width: got a negative size; want sizes of at least 0");
  require(splits >= 1, "splits: got less than 1; want into how many parts the columns are cut");
  if (lines == 0) return;
  const Suspects suspects{pointer<const int64_t>(list, lines, "list"), pointer<const int>(listed, 1, "listed"), lines, splits,
                          pointer<ExpSum>(partials, lines * splits, "partials")};
  auto* out = pointer<float>(log_sum, lines, "log_sum");
  const auto function = dtype == "float32"    ? &repair<float>
                        : dtype == "float16"  ? &repair<Half>
                        : dtype == "bfloat16" ? &repair<Bfloat16>
                                              : nullptr;
  require(function != nullptr, "dtype: got an unknown name; want float32, float16 or bfloat16");
  function(suspects, x, y, x_stride, y_stride, columns, width, scale, diagonal, stream);
  run(RepairFinish(suspects, out), stream, "repair_lines");
}

SampleTable sample_table(Address values, int64_t samples, int64_t row_stride, int columns) {
  require(samples >= 0 && columns >= 1, "samples, columns: got a size that is too small; want at least 0 samples and 1 column");
  require(row_stride >= columns, "row_stride: got less than columns; want the distance between rows");
  return {pointer<float>(values, samples, "table"), samples, row_stride, columns};
}

void gather_state(Address table, int64_t samples, int64_t row_stride, int columns, Address ids, int64_t count, Address out,
                  const py::object& stream) {
  require(count >= 0, "count: got a negative size; want at least 0");
  run(GatherState(sample_table(table, samples, row_stride, columns), pointer<const int64_t>(ids, count, "ids"), count,
                  pointer<float>(out, count, "out")),
      stream, "gather_state");
}

void advance_state(Address table, int64_t samples, int64_t row_stride, int columns, Address ids, int64_t count, Address log_g, double gamma,
                   double eps, Address log_u, Address smoothed, const py::object& stream) {
  require(count >= 0, "count: got a negative size; want at least 0");
  require(gamma > 0.0 && gamma <= 1.0, "gamma: got a value outside (0, 1]; want the weight of the new estimate");
  require(eps >= 0.0, "eps: got a negative value or NaN; want at least 0");
  run(AdvanceState(sample_table(table, samples, row_stride, columns), pointer<const int64_t>(ids, count, "ids"), count,
                   pointer<const float>(log_g, count, "log_g"), MovingAverage::of(gamma), static_cast<float>(std::log(eps)),
                   pointer<float>(log_u, count, "log_u"), pointer<float>(smoothed, count, "smoothed")),
      stream, "advance_state");
}

void scatter_state(Address table, int64_t samples, int64_t row_stride, int columns, Address ids, int64_t count, Address rows, Address slots,
                   int64_t capacity, Address skip, const py::object& stream) {
  require(count >= 0 && count < int64_t{1} << 30, "count: got a size outside [0, 2^30); want at most that many ids at once");
  require(capacity > 0 && (capacity & (capacity - 1)) == 0 && capacity >= 2 * count,
          "capacity: got too few slots; want a power of two of at least 2 * count, filled with -1");
  const auto whole = sample_table(table, samples, row_stride, columns);
  const Claims claims{pointer<const int64_t>(ids, count, "ids"), pointer<int>(slots, capacity, "slots"), capacity};
  run(ClaimRows(claims, count, samples), stream, "scatter_state");
  run(ScatterState(whole, claims, count, pointer<const float>(rows, count, "rows"), pointer<const float>(skip, 0, "skip")), stream,
      "scatter_state");
}

LambProblem lamb_problem(Address tensors, int64_t tensor_count, Address chunks, Address first_chunk, int64_t chunk_count, Address partials,
                         Address norms, Address skip, Address multiply, double beta1, double beta2, float eps, int rule) {
  require(tensor_count >= 0 && chunk_count >= 0, "tensor_count, chunk_count: got a negative size; want at least 0");
  require(beta1 >= 0.0 && beta1 < 1.0 && beta2 >= 0.0 && beta2 < 1.0, "beta1, beta2: got a value outside [0, 1)");
  require(rule >= 0 && rule <= 2, "rule: got an unknown number; want 0 nvlamb, 1 paper or 2 deepspeed");
  return {pointer<const LambTensor>(tensors, tensor_count, "tensors"),
          tensor_count,
          pointer<const LambChunk>(chunks, chunk_count, "chunks"),
          pointer<const int>(first_chunk, tensor_count + 1, "first_chunk"),
          chunk_count,
          pointer<float>(partials, chunk_count, "partials"),
          pointer<float>(norms, tensor_count, "norms"),
          pointer<const float>(skip, 0, "skip"),
          pointer<const float>(multiply, 0, "multiply"),
          {LambAverage::of(beta1), LambAverage::of(beta2), eps, static_cast<TrustRule>(rule)}};
}

template <class Number>
void lamb_phase(int phase, const LambProblem& problem, const py::object& stream) {
  if (phase == 2) return run(LambApply<Number>{problem}, stream, "lamb");
  run(LambMoments<Number>{problem}, stream, "lamb");
  run(LambNorms{problem}, stream, "lamb");
}

void lamb(int phase, const std::string& dtype, Address tensors, int64_t tensor_count, Address chunks, Address first_chunk, int64_t chunk_count,
          Address partials, Address norms, Address skip, Address multiply, double beta1, double beta2, float eps, int rule,
          const py::object& stream) {
  require(phase == 1 || phase == 2, "phase: got another number; want 1 or 2");
  const auto problem = lamb_problem(tensors, tensor_count, chunks, first_chunk, chunk_count, partials, norms, skip, multiply, beta1, beta2, eps, rule);
  const auto function = dtype == "float32"    ? &lamb_phase<float>
                        : dtype == "float16"  ? &lamb_phase<Half>
                        : dtype == "bfloat16" ? &lamb_phase<Bfloat16>
                                              : nullptr;
  require(function != nullptr, "dtype: got an unknown name; want float32, float16 or bfloat16");
  function(phase, problem, stream);
}

void sample_patches(uint64_t seed, uint32_t step, Address samples, int64_t pictures, int patches, int keep, Address chosen,
                    const py::object& stream) {
  require(pictures >= 0, "pictures: got a negative size; want at least 0");
  require(patches >= 1 && patches <= kMostPatches, "patches: got a number outside 1 to 4096; want the patches of a picture");
  require(keep >= 1 && keep <= patches, "keep: got a number outside 1 to patches; want how many patches stay");
  const auto* ids = pointer<const int64_t>(samples, pictures, "samples");
  auto* out = pointer<int64_t>(chosen, pictures * keep, "chosen");
  if (patches <= kFewPatches)
    run(SamplePatches<kFewPatches>{seed, step, ids, pictures, patches, keep, out}, stream, "sample_patches");
  else
    run(SamplePatches<kMostPatches>{seed, step, ids, pictures, patches, keep, out}, stream, "sample_patches");
}

template <class Number>
void gather(Address pixels, Address chosen, int64_t pictures, int keep, int channels, int grid, int size, Address out, const py::object& stream) {
  const GatherPatches<Number> kernel{pointer<const Number>(pixels, pictures, "pixels"),
                                     pointer<const int64_t>(chosen, pictures * keep, "chosen"),
                                     pictures,
                                     keep,
                                     channels,
                                     grid,
                                     size,
                                     pointer<Number>(out, pictures * keep, "out")};
  run(kernel, stream, "gather_patches");
}

void gather_patches(int bytes, Address pixels, Address chosen, int64_t pictures, int keep, int channels, int grid, int size, Address out,
                    const py::object& stream) {
  require(pictures >= 0 && keep >= 0, "pictures, keep: got a negative size; want at least 0");
  require(channels >= 1 && grid >= 1 && size >= 1, "channels, grid, size: got less than 1; want the shape of the pictures");
  const auto function = bytes == 1 ? &gather<uint8_t> : bytes == 2 ? &gather<uint16_t> : bytes == 4 ? &gather<uint32_t> : nullptr;
  require(function != nullptr, "bytes: got another number; want 1, 2 or 4 to a pixel value");
  function(pixels, chosen, pictures, keep, channels, grid, size, out, stream);
}

py::tuple philox_words(uint32_t first, uint32_t second, uint32_t third, uint32_t fourth, uint64_t key) {
  const auto out = philox({{first, second, third, fourth}}, key);
  return py::make_tuple(out.words[0], out.words[1], out.words[2], out.words[3]);
}

}  // namespace

void bind_cuda(py::module_& module) {
  using py::arg;
  module.def("set_host_order", [](bool descending) { host_order.descending = descending; }, arg("descending"),
             "For tests: whether launches on the host go through blocks and threads from the last to the first. No result may change.");
  module.def("merge_partials", &merge_partials, arg("sums"), arg("offsets"), arg("lines"), arg("tiles"), arg("line_block"),
             arg("offset_line_stride"), arg("offset_tile_stride"), arg("log_sum"), arg("suspect"), arg("list") = 0, arg("listed") = 0,
             arg("stream") = py::none(), arg("before") = 0, arg("after") = 0,
             "Partials [tiles, lines] to log-sum-exps [lines], suspect flags (bytes) and, unless 0, a list of the suspect lines (int64) and its "
             "length (int32, which the caller starts at 0). Tiles may come in several calls: before and after are [lines, 3] fp32 or 0, and "
             "with after there is no result yet.");
  module.def("repair_lines", &repair_lines, arg("dtype"), arg("x"), arg("y"), arg("x_stride"), arg("y_stride"), arg("lines"), arg("columns"),
             arg("width"), arg("scale"), arg("diagonal"), arg("list"), arg("listed"), arg("splits"), arg("partials"), arg("log_sum"),
             arg("stream") = py::none(),
             "Overwrites log_sum of the listed lines by the log-sum-exp of scale * x y^T over all columns; partials: 2 * lines * splits floats.");
  module.def("gather_state", &gather_state, arg("table"), arg("samples"), arg("row_stride"), arg("columns"), arg("ids"), arg("count"), arg("out"),
             arg("stream") = py::none(), "Rows of a table by int64 id; NaN for an id outside it.");
  module.def("advance_state", &advance_state, arg("table"), arg("samples"), arg("row_stride"), arg("columns"), arg("ids"), arg("count"),
             arg("log_g"), arg("gamma"), arg("eps"), arg("log_u"), arg("smoothed"), arg("stream") = py::none(),
             "log((1 - gamma) u + gamma g), log g on a first visit (log u = -inf), and log(that + eps), by id; the table is only read.");
  module.def("scatter_state", &scatter_state, arg("table"), arg("samples"), arg("row_stride"), arg("columns"), arg("ids"), arg("count"),
             arg("rows"), arg("slots"), arg("capacity"), arg("skip") = 0, arg("stream") = py::none(),
             "Stores rows by id; of equal ids the one at the lowest position. Nothing where the fp32 value at skip is not 0.");
  module.def("lamb", &lamb, arg("phase"), arg("dtype"), arg("tensors"), arg("tensor_count"), arg("chunks"), arg("first_chunk"),
             arg("chunk_count"), arg("partials"), arg("norms"), arg("skip"), arg("multiply"), arg("beta1"), arg("beta2"), arg("eps"), arg("rule"),
             arg("stream") = py::none(), "One phase of LAMB over many tensors whose gradients have one dtype; see csrc/cuda/lamb.h.");
  module.attr("lamb_chunk_elements") = LambProblem::kElements;
  module.def("sample_patches", &sample_patches, arg("seed"), arg("step"), arg("samples"), arg("pictures"), arg("patches"), arg("keep"),
             arg("chosen"), arg("stream") = py::none(), "For each picture `keep` patch numbers, ascending, from (seed, step, sample) alone.");
  module.def("gather_patches", &gather_patches, arg("bytes"), arg("pixels"), arg("chosen"), arg("pictures"), arg("keep"), arg("channels"),
             arg("grid"), arg("size"), arg("out"), arg("stream") = py::none(), "Pixels of chosen patches, by channel, row, column.");
  module.def("philox", &philox_words, arg("first"), arg("second"), arg("third"), arg("fourth"), arg("key"), "Philox-4x32-10: four random words from four words and a 64-bit key.");
}

}  // namespace clipkit
