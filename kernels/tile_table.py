# SPDX-License-Identifier: Apache-2.0
"""The tiles, one row a line: capability, kernel kind, bits of an input element, widest features, tile.

A row serves its architecture and newer ones that have no row of that kind and type: the 80s are for sm_86 and sm_89 as
well. Chosen by the accounting (accounting.py) and offline compilation (tests/aot); no row has been timed on a card
unless its comment says so. `python -m clipkit.kernels.autotune` times candidates and writes such rows.

16 bit: 128 x 256 moves three quarters of the operand bytes per FLOP of 128 x 128, as 256 x 128 does, and on sm_90 and
sm_100 it is L2 that feeds the matrix units; its 128 accumulators a thread leave room for one block a multiprocessor, so
nothing overlaps its epilogue. At widths up to 256 the epilogue takes longer than the products, and two blocks of 128 x
128 hide one another's (those of one direction: the symmetric weights take 208 registers, and one block). Elsewhere 99
KB of shared memory, or registers, stop at 128 x 128: the statistics carry column sums from tile to tile, which on
sm_100 leaves no room for more. A thread of sm_90 needs the offsets and scales of a quarter of its tile's columns: 256 x
128 has half as many as 128 x 256, but more rows, which one side alone does not bear. One of sm_100 needs those of all
columns of its row. Kinds with two and three accumulators have as much smaller tiles, and K blocks of 32 where 64 spill.

32 bit: the ordinary pipes, whose operands are registers too; K blocks of 16, because the masks of a width that is no
multiple of 32 took the last registers.

UNALIGNED serves every card where a row of features does not begin on 16 elements. Each is then loaded by itself: 128 x
256 x 64 holds 96 addresses a thread, and spilled 1736 bytes; these tiles hold 16 or 24. Their loads are not pipelined,
and the features' owner had better pad them.
"""

from __future__ import annotations

from .config import Row, TileConfig

ANY = 1 << 30

TABLE: tuple[Row, ...] = (
    Row(80, "statistics", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(90, "statistics", 16, ANY, TileConfig(256, 128, 64, warps=8, stages=3)),
    Row(100, "statistics", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(120, "statistics", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(80, "statistics", 32, ANY, TileConfig(64, 128, 16, warps=8, stages=2)),
    Row(80, "kept statistics", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(100, "kept statistics", 16, ANY, TileConfig(128, 64, 64, warps=8, stages=3)),
    Row(80, "kept statistics", 32, ANY, TileConfig(64, 128, 16, warps=8, stages=2)),
    Row(80, "rows", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(90, "rows", 16, 256, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(90, "rows", 16, ANY, TileConfig(128, 256, 64, warps=8, stages=3)),
    Row(100, "rows", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(120, "rows", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(80, "rows", 32, ANY, TileConfig(64, 128, 16, warps=8, stages=2)),
    Row(80, "kept rows", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(80, "kept rows", 32, ANY, TileConfig(64, 128, 16, warps=8, stages=2)),
    Row(80, "anchors", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(80, "anchors", 32, ANY, TileConfig(64, 128, 16, warps=8, stages=2)),
    Row(80, "gradient", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(90, "gradient", 16, 256, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(90, "gradient", 16, ANY, TileConfig(256, 128, 64, warps=8, stages=3)),
    Row(100, "gradient", 16, 256, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(100, "gradient", 16, ANY, TileConfig(128, 256, 64, warps=8, stages=3)),
    Row(120, "gradient", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(80, "gradient", 32, ANY, TileConfig(64, 128, 16, warps=8, stages=2)),
    Row(80, "one-sided gradient", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(90, "one-sided gradient", 16, 256, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(90, "one-sided gradient", 16, ANY, TileConfig(128, 256, 64, warps=8, stages=3)),
    Row(120, "one-sided gradient", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(80, "one-sided gradient", 32, ANY, TileConfig(64, 128, 16, warps=8, stages=2)),
    Row(80, "scaled gradient", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(100, "scaled gradient", 16, ANY, TileConfig(128, 64, 64, warps=8, stages=3)),
    Row(80, "scaled gradient", 32, ANY, TileConfig(64, 128, 16, warps=8, stages=2)),
    Row(80, "sigmoid", 16, ANY, TileConfig(128, 128, 64, warps=8, stages=3)),
    Row(80, "sigmoid", 32, ANY, TileConfig(64, 128, 16, warps=8, stages=2)),
    Row(80, "pair", 16, ANY, TileConfig(128, 64, 32, warps=8, stages=4)),
    Row(80, "pair", 32, ANY, TileConfig(64, 64, 16, warps=8, stages=2)),
    Row(80, "curvature", 16, ANY, TileConfig(64, 64, 64, warps=8, stages=3)),
    Row(90, "curvature", 16, ANY, TileConfig(64, 128, 32, warps=8, stages=4)),
    Row(100, "curvature", 16, ANY, TileConfig(64, 64, 64, warps=8, stages=3)),
    Row(80, "curvature", 32, ANY, TileConfig(64, 64, 16, warps=8, stages=2)),
    Row(80, "repair", 16, ANY, TileConfig(32, 64, 16, warps=4, stages=2)),
    Row(80, "repair", 32, ANY, TileConfig(32, 64, 16, warps=8, stages=2)),
)

UNALIGNED: dict[tuple[str, int], TileConfig] = {
    ("statistics", 16): TileConfig(64, 128, 32, warps=8, stages=2),
    ("kept statistics", 16): TileConfig(64, 64, 32, warps=8, stages=2),
    ("rows", 16): TileConfig(64, 128, 32, warps=8, stages=2),
    ("kept rows", 16): TileConfig(64, 64, 32, warps=8, stages=2),
    ("anchors", 16): TileConfig(64, 128, 32, warps=8, stages=2),
    ("gradient", 16): TileConfig(64, 128, 32, warps=8, stages=2),
    ("one-sided gradient", 16): TileConfig(64, 128, 32, warps=8, stages=2),
    ("scaled gradient", 16): TileConfig(64, 128, 32, warps=8, stages=2),
    ("sigmoid", 16): TileConfig(64, 64, 32, warps=8, stages=2),
    ("pair", 16): TileConfig(64, 64, 32, warps=8, stages=2),
    ("pair", 32): TileConfig(64, 64, 16, warps=4, stages=2),
}
