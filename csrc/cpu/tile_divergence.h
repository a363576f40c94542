// SPDX-License-Identifier: Apache-2.0
// Two forms over the same pairs: how far the student's softmax is from the teacher's, term by term, and G in place of the student's tile.
#pragma once

#include "cpu/vector_functions.h"
#include "cpu/tile.h"

namespace clipkit {
namespace CLIPKIT_ISA {
namespace {

struct DivergenceTerms {
  Floats difference;  // P - Pt
  Floats divergence;  // Pt (e^r - 1 - r), r = log P/Pt
  Floats plogp;       // Pt log Pt
};

// One direction. For |r| < 1/2 everything is Pt times a series in r, beyond it the difference of two exponentials, which cannot overflow.
CLIPKIT_INLINE DivergenceTerms divergence_terms(Floats student, Floats teacher, Floats student_lse, Floats teacher_lse) {
  const Floats r = (student - teacher) - (student_lse - teacher_lse);
  const Floats teacher_log = teacher - teacher_lse;
  const Floats probability = exponential(teacher_log);
  const Floats beyond = exponential(student - student_lse) - probability;
  const Floats series = excess(r);
  const Ints near = (r > -0.5f) & (r < 0.5f);
  return {near ? (r + series) * probability : beyond, near ? series * probability : beyond - r * probability, teacher_log * probability};
}

inline void tile_divergence(Divergence& work) {
  const Tile& tile = work.student;
  for (int64_t i = 0; i < tile.rows; ++i) {
    float* student = tile.products + i * tile.stride;
    const float* teacher = work.teacher.products + i * work.teacher.stride;
    const Floats row_lse = all(work.row_student[i]), row_teacher_lse = all(work.row_teacher[i]);
    Floats divergence = {}, plogp = {};
    along(tile.columns, [&](int64_t j, auto lanes) CLIPKIT_LAMBDA {
      const Floats s = logit(lanes.load(student + j), tile.scale), t = logit(lanes.load(teacher + j), work.teacher.scale);
      const DivergenceTerms row = divergence_terms(s, t, row_lse, row_teacher_lse);
      const DivergenceTerms column = divergence_terms(s, t, lanes.load(work.column_student + j), lanes.load(work.column_teacher + j));
      divergence += lanes.keep(row.divergence + column.divergence);
      plogp += lanes.keep(row.plogp + column.plogp);
      lanes.store(student + j, row.difference + column.difference);
    });
    work.divergence += sum(divergence);
    work.entropy -= sum(plogp);
  }
}

}  // namespace
}  // namespace CLIPKIT_ISA
}  // namespace clipkit
