# SPDX-License-Identifier: Apache-2.0
"""One tile of a student's S and a teacher's T: how far apart their softmaxes are, and the gradient's weights."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import exponential, lines, store_tile, swizzled_tile, tile_products


@triton.jit
def tile_divergence(
    x,
    y,
    scale,
    rows,
    columns,
    x_stride,
    y_stride,
    x_teacher,
    y_teacher,
    teacher_scale,
    x_teacher_stride,
    y_teacher_stride,
    row_student,
    row_teacher,
    column_student,
    column_teacher,
    divergence,
    entropy,
    weights,
    weights_stride,
    WIDTH: tl.constexpr,
    TEACHER_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT: tl.constexpr,
    WANT_WEIGHTS: tl.constexpr,
):
    """One program, one tile. Towers as in tile_statistics, the teacher's of a width of their own; the four vectors are
    the log-sum-exps of S and T along rows and columns, fp32.

    Writes the tile's share of the divergence and of the teacher's entropy (clipkit.engine.sweeps.pair_divergence) to
    divergence[program] and entropy[program], and with WANT_WEIGHTS UNIT * (P - Pt + Q - Qt) to weights [rows, columns].
    """
    program = tl.program_id(0)
    row_tile, column_tile = swizzled_tile(program, rows, columns, BLOCK_M, BLOCK_N, GROUP)
    i, j = lines(row_tile, BLOCK_M), lines(column_tile, BLOCK_N)
    s = tile_products(x, y, i, j, rows, columns, x_stride, y_stride, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    t = tile_products(
        x_teacher, y_teacher, i, j, rows, columns, x_teacher_stride, y_teacher_stride,
        TEACHER_WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    s *= tl.load(scale)
    t *= tl.load(teacher_scale)

    if not EVEN:
        # So improbable that every term vanishes, and finite, so that no difference is NaN.
        inside = (i[:, None] < rows) & (j[None, :] < columns)
        s, t = tl.where(inside, s, -1e30), tl.where(inside, t, -1e30)

    row, column = tl.minimum(i, rows - 1), tl.minimum(j, columns - 1)
    lse, teacher_lse = tl.load(row_student + row)[:, None], tl.load(row_teacher + row)[:, None]
    gap, terms, entropies = softmax_gap(s, t, lse, teacher_lse)
    lse, teacher_lse = tl.load(column_student + column)[None, :], tl.load(column_teacher + column)[None, :]
    down, down_terms, down_entropies = softmax_gap(s, t, lse, teacher_lse)
    tl.store(divergence + program, terms + down_terms)
    tl.store(entropy + program, entropies + down_entropies)
    if WANT_WEIGHTS:
        store_tile(weights, (gap + down) * UNIT, i, j, rows, weights_stride, EVEN)


@triton.jit
def softmax_gap(s, t, lse, teacher_lse):
    """(P - Pt, Σ Pt φ(log P/Pt), -Σ Pt log Pt) for P = e^(s - lse), Pt = e^(t - teacher_lse), φ(r) = e^r - 1 - r.

    Near r = 0 differences of exponentials have no digits left, so both come from the series of φ there.
    """
    teacher = exponential(t, teacher_lse)
    entropies = -tl.sum((t - teacher_lse) * teacher)
    r = (s - t) - (lse - teacher_lse)
    # r^2 (1/2! + r/3! + ... + r^7/9!): what follows is below fp32's rounding for |r| < 1/2.
    series = r * (1.0 / 362880.0) + 1.0 / 40320.0
    series = series * r + 1.0 / 5040.0
    series = series * r + 1.0 / 720.0
    series = series * r + 1.0 / 120.0
    series = series * r + 1.0 / 24.0
    series = series * r + 1.0 / 6.0
    excess = (series * r + 0.5) * r * r
    beyond = exponential(s, lse) - teacher
    near = tl.abs(r) < 0.5
    terms = tl.sum(tl.where(near, excess * teacher, beyond - r * teacher))
    return tl.where(near, (r + excess) * teacher, beyond), terms, entropies
