# SPDX-License-Identifier: Apache-2.0
"""The tuner without a card: what it tries, which it takes, and the row it writes."""

import itertools
import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

from clipkit.kernels import accounting, autotune
from clipkit.kernels.config import KINDS, Row, TileConfig, best_row
from clipkit.kernels.tile_table import ANY

from tests.aot.launches import recorded

TILE = TileConfig(64, 256, 32, warps=8, stages=4)


@pytest.mark.parametrize("capability", accounting.CARDS)
def test_candidates_fit_the_card_and_begin_with_the_present_tile(capability):
    for kind, bits in itertools.product(autotune._SWEEPS, (16, 32)):
        tiles = autotune.candidates(kind, bits, capability)
        assert tiles[0] == best_row(kind, capability, bits, ANY).tile
        assert 10 < len(tiles) == len(set(tiles))
        assert all(accounting.fits(kind, tile, bits, capability) for tile in tiles)


def test_every_kind_with_a_sweep_of_its_own_can_be_tuned():
    assert set(autotune._SWEEPS) == set(KINDS) - {"repair"}


def test_the_fastest_tile_wins_and_one_that_fails_is_left_out(capsys):
    tiles = [TileConfig(64, 64, 32, 4, stages) for stages in (2, 3, 4)]
    clock = {2: [5.0, 1.0, 5.0], 3: [2.0, 9.0, 2.0]}  # medians 5 and 2
    running = []

    def launch(tile):
        if tile.stages == 4:
            raise RuntimeError("out of resource: shared memory")
        running.append(tile.stages)

    def timer(call):
        call()
        return clock[running[-1]].pop(0)

    measured = autotune.measure(tiles, launch, timer, rounds=3)
    assert [(m.tile.stages, m.milliseconds) for m in measured] == [(3, 2.0), (2, 5.0)]
    assert running[2:] == [2, 3, 2, 3, 2, 3], "tiles take turns"
    assert "out of resource" in capsys.readouterr().err


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter makes launches of its own")
@pytest.mark.parametrize("kind", autotune._SWEEPS)
def test_what_is_timed_is_the_kernel_with_the_candidate_tile(kind):
    x, y = (torch.empty(512, 64, dtype=torch.bfloat16, device="meta") for _ in range(2))
    launches = recorded(lambda: autotune._SWEEPS[kind](x, y, torch.empty(1, device="meta"))(TILE), 90)
    timed = [
        launch["kernel"]
        for launch in launches
        if [launch["constants"].get(f"BLOCK_{axis}") for axis in "MNK"] == [64, 256, 32]
        and launch["options"]["num_warps"] == 8
    ]
    assert len(timed) == 1


def table_of(text):
    names = {"__name__": "clipkit.kernels.tile_table", "__package__": "clipkit.kernels"}
    exec(compile(text, "tile_table.py", "exec"), names)
    return names["TABLE"]


@pytest.mark.parametrize(
    "capability, widest, more", [(90, ANY, 0), (89, ANY, 1), (89, 256, 1), (120, 256, 1), (75, ANY, 1)]
)
def test_a_row_replaces_its_own_or_takes_its_place_in_the_order(capability, widest, more):
    before = autotune.TABLE_FILE.read_text()
    row = Row(capability, "statistics", 16, widest, TILE)
    after = autotune.with_row(before, row, "H100, d=512: 1.8 ms, was 2")
    table = table_of(after)
    assert len(table) == len(table_of(before)) + more
    assert table.count(row) == 1
    chosen = [r for r in table if (r.kind, r.bits) == ("statistics", 16)]
    assert chosen == sorted(chosen, key=lambda r: (r.capability, r.widest))
    assert max(map(len, after.splitlines())) <= 120
    assert autotune.with_row(after, row, "H100, d=512: 1.8 ms, was 2") == after


def test_without_a_card_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert autotune.main(["statistics"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
