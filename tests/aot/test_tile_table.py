# SPDX-License-Identifier: Apache-2.0
"""The table of tiles: every card finds a row for every kernel kind, input type and width, and the row fits the card."""

import itertools

import pytest
import torch
from clipkit.kernels import accounting, config
from clipkit.kernels.config import TileConfig
from clipkit.kernels.tile_table import TABLE, UNALIGNED

# sm_103 and sm_121 came after the listed ones, sm_75 before them: the nearest row is used.
CAPABILITIES = [75, *accounting.CARDS, 103, 121]
WIDTHS = [6, 256, 257, 512, 1280, 8192]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_card_finds_a_tile_that_fits_it(capability):
    for kind, bits, width, aligned in itertools.product(config.KINDS, (16, 32), WIDTHS, (True, False)):
        tile = config.best_tile(kind, capability, bits, width, aligned)
        assert accounting.fits(kind, tile, bits, capability), f"{kind}, {bits} bit, d = {width}: {tile}"


def test_a_row_of_the_card_itself_wins_and_of_these_the_narrowest():
    for row in TABLE:
        assert config.best_row(row.kind, row.capability, row.bits, row.widest) is row
    keys = [(row.capability, row.kind, row.bits, row.widest) for row in TABLE]
    assert len(set(keys)) == len(keys)


def test_features_whose_rows_are_not_aligned_get_the_tile_for_such():
    from clipkit.kernels.form import Form

    wide = torch.empty(40, 658, dtype=torch.bfloat16, device="meta")
    aligned = Form.of(wide[:, :656].contiguous(), wide[:, :656].contiguous(), 1.0)
    assert aligned.aligned
    assert aligned.band(3, 40).aligned
    for x in (wide, wide[:, :656], wide[:, 1:657]):
        assert not Form.of(x, aligned.y if x.shape[1] == 656 else x, 1.0).aligned
    assert config.best_tile("gradient", 90, 16, 656, aligned=True) != UNALIGNED["gradient", 16]
    assert config.best_tile("gradient", 90, 16, 656, aligned=False) == UNALIGNED["gradient", 16]


def test_the_interpreter_gets_small_tiles():
    assert config.tile_for("statistics", torch.device("cpu"), torch.float32, 512) == config.INTERPRETER_CONFIG


def test_accounting_rules_out_what_cannot_run():
    large = TileConfig(256, 256, 64, warps=8, stages=3)
    assert not accounting.fits("statistics", large, 16, 90), "256 accumulators a thread"
    deep = TileConfig(128, 128, 64, warps=8, stages=5)
    assert accounting.fits("statistics", deep, 16, 90)
    assert not accounting.fits("statistics", deep, 16, 89), "128 KB of operands on a card with 99"


def test_accounting_of_a_known_tile():
    tile = TileConfig(128, 256, 64, warps=8, stages=3)
    assert accounting.operand_bytes(tile, 16, 90) == 3 * 384 * 64 * 2
    assert accounting.operand_bytes(tile, 16, 80) == 2 * 384 * 64 * 2
    assert accounting.accumulator_registers("statistics", tile) == 128
    assert accounting.blocks_per_multiprocessor(8, 207, 147456, 90) == 1
    assert accounting.blocks_per_multiprocessor(4, 207, 98304, 90) == 2
    assert accounting.flops_per_operand_byte(tile, 16) == pytest.approx(85.3, abs=0.1)
