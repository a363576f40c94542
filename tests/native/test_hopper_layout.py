# SPDX-License-Identifier: Apache-2.0
"""Integer facts of the Hopper sweep: who works on what, and where the hardware puts it."""

import collections

import pytest

from tests.native import hopper_model as hopper

SHAPES = [(1, 1), (256, 256), (257, 255), (1000, 3000), (5000, 300), (20_000, 9_000)]


@pytest.mark.parametrize("rows, columns", SHAPES)
@pytest.mark.parametrize("pairs_per_item", [1, 3, 8])
def test_every_tile_belongs_to_exactly_one_item(rows, columns, pairs_per_item):
    plan = hopper.plan(rows, columns, pairs_per_item=pairs_per_item)
    tiles = collections.Counter()
    strips = collections.Counter()
    for index in range(plan.items):
        band, first, end, column_tile = hopper.item(rows, columns, pairs_per_item, index)
        assert first < end
        strips[band, column_tile] += 1
        tiles.update((pair, column_tile) for pair in range(first, end))
    assert set(tiles) == {(p, c) for p in range(-(-rows // 256)) for c in range(-(-columns // 256))}
    assert set(tiles.values()) == set(strips.values()) == {1}
    assert plan.column_strips == 4 * plan.row_bands


def test_items_that_run_together_share_rows_and_columns():
    """66 clusters: 4 row bands of 2048 rows by 17 tiles of columns, not 66 of one and 1 of the other."""
    rows = columns = 65536
    running = [hopper.item(rows, columns, 8, index) for index in range(66)]
    assert len({band for band, *_ in running}) == 4
    assert len({column_tile for *_, column_tile in running}) == 17


@pytest.mark.parametrize("rows, columns", [(256, 256), (4096, 4096), (8192, 8192), (8448, 4352), (65536, 65536)])
def test_clusters_are_busy_and_items_long_where_they_can_be(rows, columns):
    clusters = 66
    plan = hopper.plan(rows, columns, clusters=clusters)
    pairs = plan.pairs * plan.column_tiles
    rounds = -(-plan.items // clusters)
    if pairs >= 8 * clusters:
        assert pairs / (rounds * plan.pairs_per_item * clusters) > 0.9
    else:
        assert rounds * plan.pairs_per_item <= -(-pairs // clusters) + 1
    if pairs >= 500 * clusters:
        assert plan.pairs_per_item >= 4


def test_fragments_cover_the_tile_as_the_manual_draws_it():
    library = hopper.model()
    at = {
        (library.hopper_product_row(lane, value), library.hopper_product_column(lane, value)): (lane, value)
        for lane in range(32)
        for value in range(128)
    }
    assert set(at) == {(row, column) for row in range(16) for column in range(256)}
    # The figure's corners: thread 0 begins row 0, thread 3 ends its first eight columns, thread 4 begins row 1, row 8
    # is thread 0's again, and the next eight columns are the next four values.
    assert [at[0, 0], at[0, 1], at[0, 7], at[1, 0], at[8, 0], at[0, 8], at[15, 255]] == [
        (0, 0),
        (0, 1),
        (3, 1),
        (4, 0),
        (0, 2),
        (0, 4),
        (31, 127),
    ]


def test_a_threads_own_columns_are_those_of_its_values():
    library = hopper.model()
    for lane in range(32):
        for column in range(64):
            value = column // 2 * 4 + column % 2
            assert library.hopper_thread_column(lane, column) == library.hopper_product_column(lane, value)
            assert library.hopper_thread_column(lane, column) == library.hopper_product_column(lane, value + 2)


def test_descriptor_fields():
    """Bits 0-13 address / 16, 16-29 leading offset / 16, 32-45 stride / 16, 62-63 the swizzle."""
    row_bytes = 2 * hopper.model().hopper_tile_depth()
    swizzle = {128: 1, 64: 2}[row_bytes]
    for address in (0, 1024, 49152 + 8192, 227 * 1024 - 1024):
        descriptor = hopper.model().hopper_descriptor(address)
        assert descriptor & 0x3FFF == address // 16
        assert descriptor >> 16 & 0x3FFF == 1
        assert descriptor >> 32 & 0x3FFF == 8 * row_bytes // 16
        assert descriptor >> 62 == swizzle
        assert descriptor & ~(0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 3 << 62) == 0
