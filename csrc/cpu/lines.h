// SPDX-License-Identifier: Apache-2.0
// The passes over lines: operations of an encoder that read a token's numbers once and write them once. Lines are fp32 or bf16, and
// everything between is fp32. Distances between lines are in elements.
#pragma once

#include <cstdint>

namespace clipkit {

struct Line {
  void* first;
  int64_t stride;
  bool wide;  // fp32, else bf16
};

// Tokens of [n, tokens, heads, width], of which those from `begin` to `end` (counted through all pictures) are turned by their angles.
struct Rotation {
  const void* from;
  int64_t picture_stride;
  int64_t token_stride;
  int64_t head_stride;
  void* to;  // contiguous
  bool wide;
  int64_t tokens;
  int64_t heads;
  int64_t width;
  const float* cosines;  // [places, width]: of the pair that a channel belongs to
  const float* sines;    // [places, width]: negative for a pair's first channel
  const int64_t* place;  // [n, tokens - 1] or null: token t is at t - 1
  int64_t begin;
  int64_t end;
};

// A norm's vectors [hidden], its results for each line, and which lines are wanted.
struct Norm {
  const float* weight;
  const float* bias;
  int64_t hidden;
  float eps;
  float* mean;
  float* rstd;
  int64_t begin;
  int64_t end;
  float* scratch;  // [hidden]
};

// out = norm(silu(gate) * value); columns from hidden to width become zero. Lines of one type.
struct SwigluNorm {
  Norm norm;
  Line gate;
  Line value;
  Line out;
  int64_t width;
};

// total = x + branch, in x's type, and normed = norm(total), in the branch's.
struct AddNorm {
  Norm norm;
  Line x;
  Line branch;
  Line total;
  Line normed;
};

// out = x + norm(branch), in x's type.
struct AddPostNorm {
  Norm norm;
  Line x;
  Line branch;
  Line out;
};

// A norm's statistics as they were found, and where sums over these lines are added: [hidden] each, zero at first.
struct NormGradients {
  const float* weight;
  int64_t hidden;
  const float* mean;
  const float* rstd;
  float* d_weight;
  float* d_bias;
  int64_t begin;
  int64_t end;
  float* scratch;  // [2 * hidden]
};

struct SwigluNormGradients {
  NormGradients norm;
  Line grad;
  Line gate;
  Line value;
  Line d_gate;
  Line d_value;
  int64_t width;
};

// d_x = residual + the gradient of x for that of norm(x). d_x has x's type; no residual: null.
struct AddNormGradients {
  NormGradients norm;
  Line grad;
  Line residual;
  Line x;
  Line d_x;
};

struct LinePasses {
  void (*rotate)(const Rotation&);
  void (*swiglu_norm)(const SwigluNorm&);
  void (*swiglu_norm_gradients)(const SwigluNormGradients&);
  void (*add_norm)(const AddNorm&);
  void (*add_post_norm)(const AddPostNorm&);
  void (*norm_gradients)(const AddNormGradients&);
};

}  // namespace clipkit
