# SPDX-License-Identifier: Apache-2.0
"""The body of the CUDA finaliser, run over every thread index of the launch on the CPU, against float64."""

import pytest
import torch

from clipkit.engine.cuda_backend.finaliser import carry_partials, merge_partials

THREADS_PER_BLOCK = 256


def merge(native, sums, offsets, line_block, offset_strides):
    """A launch is whole blocks of threads; guards behind the outputs prove that the extra ones do nothing."""
    tiles, lines = sums.shape
    threads = -(-lines // THREADS_PER_BLOCK) * THREADS_PER_BLOCK
    log_sum = torch.full((threads,), 7.0)
    suspect = torch.full((threads,), 9, dtype=torch.uint8)
    native.merge_partials(
        sums.data_ptr(),
        offsets.data_ptr(),
        lines,
        tiles,
        line_block,
        *offset_strides,
        log_sum.data_ptr(),
        suspect.data_ptr(),
    )
    assert (log_sum[lines:] == 7.0).all()
    assert (suspect[lines:] == 9).all()
    return log_sum[:lines], suspect[:lines]


def tile_partials(logits, tile_rows, tile_columns):
    """One offset per tile, row sums [column tiles, rows] and column sums [row tiles, columns]."""
    blocks = [row.split(tile_columns, 1) for row in logits.split(tile_rows, 0)]
    offsets = torch.stack([torch.stack([tile.max() for tile in row]) for row in blocks])
    row_sums = torch.cat([torch.stack([(tile - tile.max()).exp().sum(1) for tile in row]) for row in blocks], dim=1)
    column_sums = torch.stack([torch.cat([(tile - tile.max()).exp().sum(0) for tile in row]) for row in blocks])
    return offsets, row_sums, column_sums


@pytest.mark.parametrize("rows, columns", [(1, 1), (63, 130), (257, 65), (300, 512)])
def test_merged_rows_and_columns_equal_float64(native, rows, columns):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(rows, columns, generator=generator) * 8).float()
    offsets, row_sums, column_sums = tile_partials(logits, 64, 32)
    column_tiles = offsets.shape[1]
    row, row_suspect = merge(native, row_sums.contiguous(), offsets, 64, (column_tiles, 1))
    column, column_suspect = merge(native, column_sums.contiguous(), offsets, 32, (1, column_tiles))
    torch.testing.assert_close(row.double(), logits.double().logsumexp(1), rtol=0, atol=2e-5)
    torch.testing.assert_close(column.double(), logits.double().logsumexp(0), rtol=0, atol=2e-5)
    assert not row_suspect.any()
    assert not column_suspect.any()


def test_lines_that_lost_terms_are_flagged_and_only_those(native):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(128, 96, generator=generator)
    logits[5] -= 70.0  # terms survive, but too few digits can be promised
    logits[77] -= 200.0  # everything was flushed to zero
    offsets, row_sums, _ = tile_partials(logits, 64, 32)
    row, suspect = merge(native, row_sums.contiguous(), offsets, 64, (3, 1))
    assert suspect.nonzero().flatten().tolist() == [5, 77]
    assert row[77] == -torch.inf
    good = suspect == 0
    torch.testing.assert_close(row[good].double(), logits.double().logsumexp(1)[good], rtol=0, atol=1e-5)


def test_a_line_may_have_an_offset_of_its_own_in_every_tile(native):
    """The CPU epilogue's layout: offsets [tiles, lines]."""
    generator = torch.Generator().manual_seed(3)
    sums = torch.rand(5, 300, generator=generator) + 0.5
    offsets = torch.randn(5, 300, generator=generator) * 50
    merged, _ = merge(native, sums, offsets, 1, (1, 300))
    torch.testing.assert_close(
        merged.double(), (offsets.double() + sums.double().log()).logsumexp(0), rtol=0, atol=2e-5
    )


def test_nan_reaches_the_result_and_no_tiles_give_minus_infinity(native):
    sums, offsets = torch.ones(2, 3), torch.zeros(2, 3)
    sums[1, 1] = float("nan")
    merged, _ = merge(native, sums, offsets, 1, (1, 3))
    assert merged.isnan().tolist() == [False, True, False]
    merged, suspect = merge(native, torch.ones(0, 3), torch.zeros(0, 3), 1, (1, 3))
    assert (merged == -torch.inf).all()
    assert not suspect.any()


@pytest.mark.parametrize("cuts", [[1], [2, 3], [1, 2, 3, 4]])
def test_tiles_in_several_calls_equal_one_call(native, cuts):
    """A line that only an earlier call's tiles flushed is still suspect; one that a later call saves is not."""
    generator = torch.Generator().manual_seed(4)
    offsets = torch.randn(5, 3, generator=generator)
    sums = torch.rand(5, 192, generator=generator)
    sums[:, 7] = 0.0
    sums[:3, 9] = 0.0
    offsets[1] += 90.0
    whole, suspects = merge_partials(sums, offsets, line_block=64, offset_strides=(1, 3))
    state = None
    parts = list(zip(sums.tensor_split(cuts), offsets.tensor_split(cuts), strict=True))
    for part, part_offsets in parts[:-1]:
        state = carry_partials(part, part_offsets, line_block=64, offset_strides=(1, 3), state=state)
    last, last_offsets = parts[-1]
    merged, again = merge_partials(last, last_offsets, line_block=64, offset_strides=(1, 3), state=state)
    torch.testing.assert_close(merged, whole, rtol=0, atol=1e-5)
    assert torch.equal(again.flags, suspects.flags)
    assert suspects.flags[7]
