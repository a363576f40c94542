# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel of rows alone, run by Triton's interpreter, against float64: log-sum-exps, and means under their
softmax.
"""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import interpreter_worker as worker
from tests.interpreter import sweep_cases as cases

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

DTYPES = [torch.float32, torch.float16]
SCALED = pytest.mark.parametrize("scaled", [False, True], ids=["one scale", "scales"])
# (N, M, d): single elements, one below and above a tile, a width that is no multiple of a K block, several tiles.
SHAPES = [(1, 1, 6), (2, 65, 96), (65, 1, 6), (63, 64, 40), (130, 159, 48)]


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


def check(pool, arguments):
    lse, mean = worker.in_worker(pool, cases.anchor_errors, arguments)
    assert lse <= 1.0
    assert mean <= 1.0


@SCALED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_anchor_statistics_equal_float64(pool, rows, columns, width, dtype, scaled):
    for diagonal in (None, columns - rows):
        check(pool, cases.anchors("unit", rows, columns, width, dtype, diagonal=diagonal, scaled=scaled))


@SCALED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("data", cases.DATA)
def test_every_kind_of_data(pool, data, dtype, scaled):
    """Cones with outliers at scale 100, logits of 1e4 and duplicates among them."""
    check(pool, cases.anchors(data, 130, 131, 40, dtype, scaled=scaled))


@pytest.mark.parametrize("scale", [-30.0, 0.0, 1e4])
def test_any_scale_is_exact(pool, scale):
    check(pool, cases.anchors("unit", 70, 66, 32, torch.float32) | {"scale": torch.tensor(scale)})


def test_scales_of_neighbours_may_be_worlds_apart(pool):
    """Relative to the largest logit of their tile, most of these rows would be flushed to zero."""
    arguments = cases.anchors("cone", 70, 140, 32, torch.float32)
    check(pool, arguments | {"scale": torch.logspace(-2, 3, 70)[torch.randperm(70)]})


def test_nothing_is_left_of_a_row_with_its_own_pair_alone(pool):
    lse, mean = worker.in_worker(
        pool, cases.results, "anchor_statistics", cases.anchors("unit", 1, 1, 8, torch.float32)
    )
    assert lse.tolist() == [-torch.inf]
    assert mean.tolist() == [0.0]


def test_an_empty_side_gives_minus_infinity_and_zero(pool):
    arguments = cases.anchors("unit", 3, 3, 8, torch.float32) | {"y": torch.empty(0, 8)}
    lse, mean = worker.in_worker(pool, cases.results, "anchor_statistics", arguments)
    assert lse.tolist() == [-torch.inf] * 3
    assert mean.tolist() == [0.0] * 3


@pytest.mark.parametrize("tower", ["x", "y"])
def test_nan_features_poison_the_rows_that_see_them_and_no_other(pool, tower):
    """A row of x its own statistics; a row of y those of all rows but the one whose pair is left out."""
    arguments = cases.anchors("unit", 70, 70, 8, torch.float32)
    arguments[tower][66, 0] = torch.nan
    for result in worker.in_worker(pool, cases.results, "anchor_statistics", arguments):
        poisoned = result.isnan().nonzero().flatten().tolist()
        assert poisoned == ([66] if tower == "x" else [i for i in range(70) if i != 66])
    check(pool, arguments)


def in_parts(arguments, parts):
    """The statistics with the columns cut into so many ranges."""
    from clipkit.kernels.row_statistics import anchor_statistics

    return anchor_statistics(**arguments, parts=parts)


def test_parts_of_columns_change_only_the_rounding_and_two_runs_nothing(pool):
    arguments = cases.anchors("cone", 70, 330, 24, torch.float16, scaled=True)
    whole, *others = (worker.in_worker(pool, in_parts, arguments, parts) for parts in (1, 2, 4, 100, 100))
    for lse, mean in others:
        torch.testing.assert_close(lse, whole[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(mean, whole[1], rtol=0, atol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(*others[-2:], strict=True))
