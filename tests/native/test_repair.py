# SPDX-License-Identifier: Apache-2.0
"""Suspect lines are computed again, exactly, and only those; the CUDA kernels' bodies against float64."""

import pytest
import torch

from clipkit.engine.cuda_backend import Suspects, merge_partials, repair_lines

pytestmark = pytest.mark.usefixtures("on_host")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def features(rows, width, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1).to(dtype)


def exact(x, y, scale, diagonal=None):
    logits = scale * (x.double() @ y.double().T)
    if diagonal is not None:
        rows = torch.arange(len(x))
        inside = (rows + diagonal >= 0) & (rows + diagonal < len(y))
        logits[rows[inside], rows[inside] + diagonal] = -torch.inf
    return logits.logsumexp(1)


def listed(lines, count):
    flags = torch.zeros(count, dtype=torch.uint8)
    flags[lines] = 1
    room = torch.full((count,), -1, dtype=torch.int64)
    room[: len(lines)] = torch.tensor(lines)
    return Suspects(flags, room, torch.tensor([len(lines)], dtype=torch.int32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", [(1, 1, 1), (5, 65, 6), (70, 300, 96), (3, 2500, 40)])
@pytest.mark.parametrize("diagonal", [None, 0, 2, -1])
def test_listed_lines_equal_float64_and_others_are_not_touched(rows, columns, width, dtype, diagonal):
    x, y = features(rows, width, dtype, 1), features(columns, width, dtype, 2)
    lines = list(range(0, rows, 2))[::-1]
    log_sum = torch.full((rows,), 7.0)
    repair_lines(x, y, torch.tensor([100.0]), log_sum, listed(lines, rows), diagonal=diagonal)
    wanted = exact(x, y, 100.0, diagonal)
    torch.testing.assert_close(log_sum[lines].double(), wanted[lines], rtol=0, atol=5e-5)
    assert (log_sum[1::2] == 7.0).all()


def test_an_empty_list_changes_nothing_and_reads_nothing():
    x, y, log_sum = torch.full((9, 4), torch.nan), torch.full((8, 4), torch.nan), torch.full((9,), 7.0)
    repair_lines(x, y, torch.tensor([1.0]), log_sum, listed([], 9))
    assert (log_sum == 7.0).all()


def test_more_lines_than_blocks_are_all_repaired():
    """The grid is at most 2048 blocks; a block goes on with the next line on the list."""
    x, y = features(3000, 4, torch.float32, 1), features(7, 4, torch.float32, 2)
    log_sum = torch.full((3000,), 7.0)
    repair_lines(x, y, torch.tensor([10.0]), log_sum, listed(list(range(3000)), 3000))
    torch.testing.assert_close(log_sum.double(), exact(x, y, 10.0), rtol=0, atol=1e-5)


def test_extremes_and_nan():
    """Unnormalised logits of ±1e4, a row of which nothing is left, and a NaN that must not be hidden."""
    y = torch.eye(3)
    x = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [torch.nan, 0.0, 0.0], [0.0, 0.0, 0.0]])
    log_sum = torch.zeros(4)
    repair_lines(x, y, torch.tensor([1.0]), log_sum, listed([0, 1, 2, 3], 4))
    torch.testing.assert_close(log_sum, x.logsumexp(1), equal_nan=True)
    one = torch.zeros(1)
    repair_lines(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([1.0]), one, listed([0], 1), diagonal=0)
    assert one.item() == -torch.inf


def test_merging_then_repairing_equals_float64_where_offsets_flushed_rows():
    """Tile-scalar offsets at scale 200 lose whole rows; the finaliser lists them and the repair restores them."""
    scale = 200.0
    x, y = features(130, 32, torch.float32, 3), features(257, 32, torch.float32, 3)
    x[7], x[100] = -y.mean(0), -y[0]  # far from everything, beside rows that match
    logits = (scale * (x.double() @ y.double().T)).float()
    tiles = logits.split(64, 1)
    offsets = torch.stack([tile.max() for tile in tiles])
    sums = torch.stack([(tile - tile.max()).exp().sum(1) for tile in tiles])
    log_sum, suspects = merge_partials(sums, offsets, line_block=130, offset_strides=(0, 1))
    count = int(suspects.listed)
    assert sorted(suspects.lines[:count].tolist()) == suspects.flags.nonzero().flatten().tolist()
    assert 0 < count < 130
    wanted = exact(x, y, scale)
    assert (log_sum.double() - wanted).abs().max() > 1
    repair_lines(x, y, torch.tensor([scale]), log_sum, suspects)
    torch.testing.assert_close(log_sum.double(), wanted, rtol=0, atol=2e-4)


def test_an_unknown_type_is_refused():
    x = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
        repair_lines(x, x, torch.tensor([1.0]), torch.zeros(2), listed([0], 2))
