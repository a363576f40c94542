# SPDX-License-Identifier: Apache-2.0
"""The Hopper sweep's own lines on simulated multiprocessors, where copies and multiplies happen late and in any order:
equal to float64 everywhere, the same bits under every order, no deadlock, nothing read too early or overwritten."""

import pytest
import torch

from tests.interpreter import kernel_cases as cases
from tests.native import hopper_model as hopper

HALVES = [torch.bfloat16, torch.float16]
# Ragged everywhere, one row, an odd number of row tiles (the second block of the last pair has none), full tiles.
SHAPES = [(1, 1, 8), (3, 300, 72), (128, 256, 64), (129, 40, 200), (300, 515, 136), (512, 256, 128), (385, 257, 1160)]


def check(complaint, partials, x, y, scale, diagonal=None):
    assert complaint == ""
    for got, want in zip(hopper.merged(partials), cases.exact(x, y, scale, diagonal), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2 * cases.bound(x, y, scale))
    assert not any(tensor.isnan().any() for tensor in partials), "a partial sum was not written"


def towers(rows, columns, width, dtype, seed=0):
    return cases.unit_features(rows, width, dtype, seed), cases.unit_features(columns, width, dtype, seed + 1)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_partials_equal_float64(rows, columns, width, dtype):
    x, y = towers(rows, columns, width, dtype)
    check(*hopper.sweep(x, y, 30.0), x, y, 30.0)


@pytest.mark.parametrize("scale", [100.0, -100.0, 0.0, 1e4])
def test_any_scale(scale):
    """For a negative one the largest product is the smallest logit."""
    x, y = towers(300, 300, 64, torch.float16)
    if abs(scale) == 1e4:
        x[:], y[:] = x[:1], y[:1]  # equal logits of 1e4: nothing may be flushed
    check(*hopper.sweep(x, y, scale), x, y, scale)


@pytest.mark.parametrize("diagonal", [0, 5, 255, 256, 300, -1, -130, -399, 5000])
def test_pairs_of_a_diagonal_are_left_out(diagonal):
    x, y = towers(400, 513, 64, torch.bfloat16)
    check(*hopper.sweep(x, y, 20.0, diagonal=diagonal), x, y, 20.0, diagonal)


def test_a_line_of_which_nothing_is_left_sums_to_zero():
    x, y = towers(1, 1, 64, torch.bfloat16)
    complaint, partials = hopper.sweep(x, y, 20.0, diagonal=0)
    assert complaint == ""
    assert partials.row_sums.eq(0).all()
    assert partials.column_sums.eq(0).all()


@pytest.mark.parametrize("pairs_per_item, clusters", [(1, 1), (2, 3), (3, 2), (8, 1)])
def test_tile_order_and_clusters_do_not_show(pairs_per_item, clusters):
    x, y = towers(1300, 400, 64, torch.float16)
    check(*hopper.sweep(x, y, 50.0, pairs_per_item=pairs_per_item, clusters=clusters), x, y, 50.0)


@pytest.mark.parametrize("width", [64, 192, 320, 520])
def test_every_order_of_events_gives_the_same_bits(width):
    """Fewer, as many and more steps than the ring has stages; each seed lets other parts of the chip run ahead."""
    x, y = towers(700, 300, width, torch.bfloat16)
    complaint, first = hopper.sweep(x, y, 40.0, pairs_per_item=3)
    assert complaint == ""
    for seed in range(1, 9):
        complaint, again = hopper.sweep(x, y, 40.0, pairs_per_item=3, seed=seed)
        assert complaint == ""
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.slow
def test_stages_of_twice_the_depth_are_right_too():
    """Four of them, rows of 128 bytes in the swizzle of that name."""
    double = {"constexpr int kTileDepth = 32;": "constexpr int kTileDepth = 64;"}
    x, y = towers(700, 300, 200, torch.bfloat16)
    for seed in range(3):
        check(*hopper.sweep(x, y, 40.0, diagonal=7, seed=seed, edits=double), x, y, 40.0, 7)


def test_a_nan_feature_reaches_its_row_and_every_column():
    x, y = towers(70, 260, 64, torch.bfloat16)
    x[66, 3] = float("nan")
    complaint, partials = hopper.sweep(x, y, 10.0)
    assert complaint == ""
    row, column = hopper.merged(partials)
    assert row.isnan().nonzero().flatten().tolist() == [66]
    assert column.isnan().all()


# Ways to be wrong, each in one line of the headers. A test that could not fail would let them live.
MUTANTS = {
    "no column mask": {"row < rows_left && column < columns_left": "row < rows_left"},
    "no row mask": {"row < rows_left && column < columns_left": "column < columns_left"},
    "diagonal left in": {" && column != pair_column + row;": ";"},
    "column sums keep their scale": {"column_sums[column] *= shrink;": ""},
    "columns of four warps under one offset": {
        "sums[part] += scratch.sums[warp][part * kGroupThreads + thread] * shrink;": (
            "sums[part] += scratch.sums[warp][part * kGroupThreads + thread] + 0 * shrink;"
        )
    },
    "rows in the wrong lane": {"product_row(lane, odd ? 2 : 0)": "product_row(lane, odd ? 0 : 2)"},
    "second half of Y loaded over the first": {"kBoxBytes * (1 + half); }": "kBoxBytes; }"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_numbers_are_seen(name):
    x, y = towers(300, 300, 136, torch.float16)
    complaint, partials = hopper.sweep(x, y, 80.0, diagonal=0, pairs_per_item=2, edits=MUTANTS[name])
    with pytest.raises(AssertionError):
        check(complaint, partials, x, y, 80.0, 0)


# Ways to break the protocol: (edits of the headers, fault of the simulated chip).
BROKEN_PROTOCOLS = {
    "stages are freed in the own block only": ({}, 1),
    "one warp frees a stage for all four": ({}, 2),
    "a stage is freed before it was read": ({"machine.retire_previous();": ""}, 0),
    "products are used before they are there": ({"machine.retire(products);": "machine.retire_previous();"}, 0),
    "the producer does not wait": ({"machine.wait_empty(at.stage, at.parity ^ 1);": ""}, 0),
    "the producer waits for the turn to come": (
        {"wait_empty(at.stage, at.parity ^ 1)": "wait_empty(at.stage, at.parity)"},
        0,
    ),
    "consumers do not wait": ({"machine.wait_full(at.stage, at.parity);": ""}, 0),
    "parity does not turn": ({"parity ^= 1;": ""}, 0),
    "a head start longer than the ring": (
        {"kHeadStart = kStages * 2 / 3;": "kHeadStart = kStages + 2;", "kHeadStart < kStages": "true"},
        0,
    ),
    "no wait between writing and reading the exchange": (
        {"offsets[seat.warp] = offset;\n  machine.group_barrier();": "offsets[seat.warp] = offset;"},
        0,
    ),
    "no wait before the exchange is written again": (
        {"  machine.group_barrier();  // the next item": "  // the next item"},
        0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN_PROTOCOLS)
def test_a_broken_protocol_is_seen(name):
    """By a complaint of the simulated chip or by other numbers, under at least one of the orders tried."""
    edits, fault = BROKEN_PROTOCOLS[name]
    for width in (456, 64):  # more steps than the ring has stages; one, so that a warp can be items ahead of another
        x, y = towers(260, 600, width, torch.float16)
        complaint, right = hopper.sweep(x, y, 40.0, pairs_per_item=1)
        assert complaint == ""
        for seed in range(8):
            complaint, partials = hopper.sweep(x, y, 40.0, pairs_per_item=1, seed=seed, edits=edits, fault=fault)
            if complaint or not all(torch.equal(a, b) for a, b in zip(right, partials, strict=True)):
                return
    pytest.fail("nothing noticed")
