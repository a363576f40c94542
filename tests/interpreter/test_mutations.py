# SPDX-License-Identifier: Apache-2.0
"""The interpreter tests can fail: each of these kernels has one thing broken, and a comparison shows it."""

from __future__ import annotations

import pytest

from tests.interpreter import interpreter_worker as worker
from tests.interpreter import mutants
from tests.interpreter.mutants import Mutation

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

ROW_EDGE = 'tile = tl.where(tl.arange(0, BLOCK_M)[:, None] < rows_left, tile, float("-inf"))'
COLUMN_EDGE = 'tile = tl.where(tl.arange(0, BLOCK_N)[None, :] < columns_left, tile, float("-inf"))'

MUTATIONS = [
    Mutation(
        "diagonal not folded into the weights", "tile_exponential_weights.py",
        "tl.where(is_own, tl.load(own_weight + i_inside)[:, None], result)", "result", "exponential",
    ),
    Mutation(
        "diagonal at the column of the whole matrix, not of the tile", "tiles.py",
        "local = (i + diagonal - first)", "local = (i + diagonal)", "exponential",
    ),
    Mutation(
        "diagonal of the first band in all bands", "row_col_lse.py",
        "own.band(start, stop)", "own.band(0, stop)", "statistics",
    ),
    Mutation(
        "tiles next to the diagonal taken for tiles without", "tiles.py",
        "(gap > -BLOCK_N) & (gap < BLOCK_M)", "(gap > -BLOCK_N) & (gap < 0)", "exponential",
    ),
    Mutation("rows past the edge counted", "tiles.py", ROW_EDGE, "tile = tile", "statistics"),
    Mutation("columns past the edge counted", "tiles.py", COLUMN_EDGE, "tile = tile", "statistics"),
    Mutation(
        "features past the width read", "tiles.py",
        "mask=start + k[None, :] < WIDTH", "mask=start + k[None, :] < WIDTH + BLOCK_K", "statistics",
    ),
    Mutation(
        "every tile merged with the offset of the first", "merge.py",
        "offsets_at += offset_tile_stride", "offsets_at += 0", "statistics",
    ),
    Mutation(
        "every column with the offset of the first", "tile_exponential_weights.py",
        "column_offset + j_inside", "column_offset + j_inside * 0", "exponential",
    ),
    Mutation(
        "nothing repaired", "row_sweep.py",
        "tl.max(wanted.to(tl.int32), 0) > 0", "tl.max(wanted.to(tl.int32), 0) > 1", "outliers",
    ),
    Mutation(
        "every anchor with the first one's scale", "row_sweep.py",
        "tl.load(row_scale + inside)", "tl.load(row_scale + inside * 0)", "anchors",
    ),
    Mutation(
        "moments kept relative to an old maximum", "row_sweep.py", "moment = moment * fading", "moment = moment",
        "anchors",
    ),
    Mutation(
        "every column with the scale of the first", "tile_exponential_weights.py",
        "column_scale + j_inside", "column_scale + j_inside * 0", "exponential",
    ),
    Mutation("nothing suspected", "merge.py", "(result < largest - SUSPECT_GAP)", "(result != result)", "outliers"),
    Mutation("only lines without a term repaired", "merge.py", "tl.constexpr(60.0)", "tl.constexpr(250.0)", "faint"),
    Mutation(
        "positives not turned", "tile_sigmoid_weights.py",
        "tl.where(column == own[:, None], -v, v)", "v", "sigmoid",
    ),
    Mutation(
        "pairs past the edge counted", "tile_divergence.py",
        "tl.where(inside, s, -1e30), tl.where(inside, t, -1e30)", "s, t", "divergence",
    ),
    Mutation(
        "differences of exponentials where they have no digits", "tile_divergence.py",
        "tl.abs(r) < 0.5", "tl.abs(r) < 0.0", "nearly identical",
    ),
    Mutation(
        "diagonal of P - I not folded", "tile_curvature_weights.py",
        "tl.where(is_own, -tl.load(row_miss + row)[:, None], p)", "p", "curvature",
    ),
    Mutation(
        "columns past the edge moved along", "tile_curvature_sums.py",
        "terms = tl.where(j[None, :] < columns, terms, 0.0)", "terms = terms", "curvature",
    ),
    Mutation(
        "gradient turned forward", "rows_rotation.py", "sine = -sine", "sine = sine", "rotation",
    ),
    Mutation(
        "the class token turned", "rows_rotation.py", "tl.where(moved[:, None], y, x)", "y", "rotation",
    ),
    Mutation(
        "every token with the place of the picture's first", "rows_rotation.py",
        "picture * (tokens - 1) + place, mask", "picture * (tokens - 1) + place * 0, mask", "rotation",
    ),
    Mutation(
        "statistics over the padded width", "rows_swiglu_norm.py",
        "inside, HIDDEN, eps", "inside, WIDTH, eps", "gated norm",
    ),
    Mutation(
        "padding left as it is", "rows_swiglu_norm_gradients.py",
        "(1.0 + g * (1.0 - s)), mask=column < WIDTH", "(1.0 + g * (1.0 - s)), mask=column < HIDDEN - 1", "gated norm",
    ),
    Mutation(
        "the last row of a program left out", "rows_norm_gradients.py",
        "tl.minimum((program + 1) * stretch, rows)", "tl.minimum((program + 1) * stretch, rows) - 1", "residual norm",
    ),
    Mutation(
        "the sum normalised before it is rounded", "rows_residual_norm.py",
        "addend = rounded.to(tl.float32)", "addend = residual + addend", "residual norm",
    ),
    Mutation(
        "what went past the norm forgotten", "rows_norm_gradients.py", "if RESIDUAL:", "if False:", "residual norm",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


@pytest.mark.parametrize("check", mutants.CHECKS)
def test_the_kernels_as_they_are_pass_the_comparison(pool, check, tmp_path):
    assert worker.in_worker(pool, mutants.worst, None, check, str(tmp_path)) <= 1.0


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_broken_kernel_fails_the_comparison(pool, mutation, tmp_path):
    assert worker.in_worker(pool, mutants.worst, mutation, mutation.check, str(tmp_path)) > 1.0
