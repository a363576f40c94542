// SPDX-License-Identifier: Apache-2.0
// The fused passes over one tile of a pairwise form, for every loss family. A tile holds fp32 products p_ij = <x_i, y_j> of `rows` rows
// `stride` apart; logits are s_ij = scale * p_ij. Arrays of rows and columns begin at the tile's first row and column.
#pragma once

#include <cstdint>

#include "cpu/lamb.h"

namespace clipkit {

struct Tile {
  float* products;
  int64_t stride;
  int64_t rows;
  int64_t columns;
  float scale;
};

// Where positives lie: row i's in column column[i] - first, counted from the tile's first; outside the tile, nowhere. No positives: null.
struct Positives {
  const int64_t* column;
  int64_t first;
};

// A log-sum-exp in the making, for each line of a direction: offset + log(sum). Begins with offset -infinity, sum 0. Null: not wanted.
struct RunningSums {
  float* offset;
  float* sum;
};

struct Statistics {
  Tile tile;
  Positives positives;     // left out of the sums; their products are overwritten
  float* positive_logit;   // [rows] or null: receives their logits
  RunningSums row;
  RunningSums column;
  float* scratch;          // [2 * columns]
};

// Row sums of exp(row_factor_i * p_ij), the factor in place of the tile's scale, and the sums of p_ij with the same weights.
struct Anchors {
  Tile tile;
  const float* row_factor;  // [rows]
  Positives positives;      // left out; their products are overwritten
  RunningSums row;
  float* moment;            // [rows], relative to the same offset as the row's sum
};

struct Gradient {
  Tile tile;
  Positives positives;
  const float* positive_weight;  // [rows]: G there
  const float* row_offset;       // [rows] or null: no such term
  const float* column_offset;    // [columns] or null
  const float* row_factor;       // [rows] or null: what products are multiplied by in the rows' term, where it is not the tile's scale
  const float* column_factor;    // [columns] or null
};

// Row sums relative to a running offset, products replaced by their terms: softmax in one sweep.
struct OnlineSoftmax {
  Tile tile;
  Positives positives;
  float* positive_logit;
  RunningSums row;
  float* shrink;  // [rows]: what sums made before this tile must be multiplied by
};

// Positives of the sigmoid family, as rows of a CSR list.
struct Targets {
  const int64_t* offset;  // [rows + 1]
  const int64_t* column;
  int64_t first;  // column of the form at which the tile begins
};

struct Sigmoid {
  Tile tile;
  const float* bias;  // [columns]
  Targets targets;
  bool want_gradient;   // products are replaced by G
  double* column_total;  // [columns]: sums of G are added; only with want_gradient
  float* scratch;        // [3 * columns]
  unsigned char* seen;   // [columns], zero before and after
};

struct Divergence {
  Tile student;  // replaced by G = P - P_teacher + Q - Q_teacher
  Tile teacher;
  const float* row_student;
  const float* row_teacher;
  const float* column_student;
  const float* column_teacher;
  double divergence;  // out
  double entropy;     // out
};

// Second order: beside S, its derivatives R along the rows' direction and R' along the columns' (the same tile where these are one).
struct Curvature {
  Tile tile;
  Tile along_rows;
  Tile along_columns;
  const float* row_lse;
  const float* column_lse;
};

struct CurvatureSums {
  Curvature form;
  double* row_sum;     // [rows]: sum_j P_ij R_ij is added
  double* column_sum;  // [columns]: sum_i Q_ij R'_ij is added
  float* scratch;      // [columns]
};

// Replaces S by P - I, R by M = P (R - row_mean) + Q (R' - column_mean), and R' by Q - I; where R' is R, S by P + Q - 2 I.
struct CurvatureWeights {
  Curvature form;
  Positives positives;
  const float* row_mean;
  const float* column_mean;
  const float* row_miss;         // 1 - P_ii
  const float* column_miss;      // [rows]: 1 - Q of the row's positive
  const float* positive_weight;  // [rows]: M there
};

// One set of passes per instruction set: over tiles, and over parts of an optimizer's tensors.
struct TilePasses {
  const char* name;
  void (*statistics)(const Statistics&);
  void (*anchors)(const Anchors&);
  void (*gradient)(const Gradient&);
  void (*online_softmax)(const OnlineSoftmax&);
  double (*sigmoid)(const Sigmoid&);  // returns the sum of softplus
  void (*divergence)(Divergence&);
  void (*curvature_sums)(const CurvatureSums&);
  void (*curvature_weights)(const CurvatureWeights&);
  LambSquares (*lamb_moments)(const LambPart&);
  void (*lamb_apply)(const LambPart&);
};

// Null where the compiler or the processor's kind does not have the instructions.
const TilePasses* portable_passes();
const TilePasses* avx2_passes();
const TilePasses* avx512_passes();

}  // namespace clipkit
