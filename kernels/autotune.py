# SPDX-License-Identifier: Apache-2.0
"""Measures tiles on the card at hand, and writes the best as a row of the table. Never runs by itself.

    python -m clipkit.kernels.autotune statistics --dtype bf16 --width 512 [--rows 32768] [--write]

Candidates are what the accounting lets through; each is compiled and timed in turn, round after round, so that a card
that slows down as it warms meets all alike. Without --write the row is printed only.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from . import tile_table
from .accounting import fits
from .config import Row, TileConfig, best_row, capability_of
from .tile_table import ANY

TABLE_FILE = Path(tile_table.__file__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDS = 7
NARROW = 256
"""Up to this width the epilogue outlasts the products; the table's narrow rows end here."""

Launch = Callable[[TileConfig], object]
Timer = Callable[[Callable[[], object]], float]


class Measured(NamedTuple):
    """Median milliseconds of a tile; infinite where it does not compile or does not run."""

    tile: TileConfig
    milliseconds: float


def candidates(kind: str, bits: int, capability: int) -> list[TileConfig]:
    """The table's own tile first, then every one that fits by the accounting."""
    own = best_row(kind, capability, bits, ANY).tile
    block_ks = (32, 64, 128) if bits == 16 else (16, 32)
    sizes = itertools.product((64, 128, 256), (64, 128, 256), block_ks, (4, 8, 16), (2, 3, 4, 5))
    tiles = [TileConfig(*size) for size in sizes]
    return [own, *(tile for tile in tiles if tile != own and _sensible(tile) and fits(kind, tile, bits, capability))]


def _sensible(tile: TileConfig) -> bool:
    """Between 16 and 128 accumulators a thread in one tile: fewer leave the matrix units idle, more spill."""
    return 16 <= tile.block_m * tile.block_n // (32 * tile.warps) <= 128


def measure(tiles: Sequence[TileConfig], launch: Launch, timer: Timer, rounds: int = ROUNDS) -> list[Measured]:
    """Every tile's median time over the rounds, fastest first. One that fails in the first round is not tried again."""
    times: dict[TileConfig, list[float]] = {}
    for tile in tiles:
        try:
            launch(tile)
        except Exception as failure:  # what a compiler can throw is not ours to list
            sys.stderr.write(f"{tile}: left out ({type(failure).__name__}: {str(failure).splitlines()[:1]})\n")
        else:
            times[tile] = []
    for _ in range(rounds):
        for tile, seconds in times.items():
            seconds.append(timer(lambda tile=tile: launch(tile)))  # type: ignore[misc]
    return sorted((Measured(tile, statistics.median(taken)) for tile, taken in times.items()), key=lambda m: m[1])


def row_line(row: Row, remark: str) -> str:
    """The row as tile_table.py writes it."""
    widest = "ANY" if row.widest == ANY else str(row.widest)
    tile = row.tile
    sizes = f"{tile.block_m}, {tile.block_n}, {tile.block_k}, warps={tile.warps}, stages={tile.stages}"
    return f'    Row({row.capability}, "{row.kind}", {row.bits}, {widest}, TileConfig({sizes})),  # {remark}'


def with_row(table: str, row: Row, remark: str) -> str:
    """The table's text with this row: in the place of the one it replaces, or after the last of its kind and type that
    comes before it.
    """
    lines = table.splitlines()
    order = {
        index: (int(found[1]), ANY if found[4] == "ANY" else int(found[4]))
        for index, line in enumerate(lines)
        if (found := re.match(r'    Row\((\d+), "([\w -]+)", (\d+), (\w+),', line))
        and (found[2], int(found[3])) == (row.kind, row.bits)
    }
    place = (row.capability, row.widest)
    same = [index for index, at in order.items() if at == place]
    if same:
        lines[same[0]] = row_line(row, remark)
    else:
        before = [index for index, at in order.items() if at < place]
        lines.insert(before[-1] + 1 if before else min(order), row_line(row, remark))
    return "\n".join(lines) + "\n"


def launch_of(kind: str, dtype: torch.dtype, rows: int, columns: int, width: int) -> Launch:
    """A sweep of the kind on the card, whose tile is an argument. What the library multiplies is timed along with it,
    the same for every tile.
    """
    generator = torch.Generator("cuda").manual_seed(0)

    def tower(size: int) -> torch.Tensor:
        features = torch.randn(size, width, device="cuda", generator=generator)
        return torch.nn.functional.normalize(features, dim=1).to(dtype)

    return _SWEEPS[kind](tower(rows), tower(columns), torch.tensor([50.0], device="cuda"))


def _statistics(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, *, keep: bool = False) -> Launch:
    from .form import Form
    from .kept import unwritten
    from .row_col_lse import row_col_lse

    kept = unwritten(Form.of(x, y, scale), len(x)) if keep else None
    return lambda tile: row_col_lse(x, y, scale, kept=kept, config=tile)


def _rows(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, *, keep: bool = False) -> Launch:
    from .form import Form, Own
    from .kept import unwritten
    from .row_statistics import row_lse

    form, own = Form.of(x, y, scale), Own("labels", labels=torch.arange(len(x), device=x.device))
    kept = unwritten(form, len(x)) if keep else None
    return lambda tile: row_lse(form, own, kept=kept, config=tile)


def _anchors(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> Launch:
    from .row_statistics import anchor_statistics

    return lambda tile: anchor_statistics(x, y, scale, diagonal=0, config=tile)


def _gradient(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, *, one_sided: bool = False) -> Launch:
    from .exponential_products import exponential_products
    from .row_col_lse import row_col_lse

    row, column = row_col_lse(x, y, scale)
    down = None if one_sided else column
    return lambda tile: exponential_products(
        x, y, scale, row_offset=row, column_offset=down, own_weight=row, want_y=False, config=tile
    )


def _scaled_gradient(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> Launch:
    from .exponential_products import exponential_products
    from .row_col_lse import row_col_lse

    row, column = row_col_lse(x, y, scale)
    row_scale, column_scale = torch.ones_like(row), torch.ones_like(column)
    return lambda tile: exponential_products(
        x,
        y,
        scale,
        row_offset=row,
        column_offset=column,
        row_scale=row_scale,
        column_scale=column_scale,
        own_weight=row,
        want_y=False,
        config=tile,
    )


def _sigmoid(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> Launch:
    from .sigmoid_sweep import sigmoid_sweep

    return lambda tile: sigmoid_sweep(x, y, scale, -10.0, diagonal=0, want_gradients=True, config=tile)


def _pair(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> Launch:
    from .form import Form
    from .pair_divergence import LogSumExps, pair_divergence
    from .row_col_lse import row_col_lse

    row, column = row_col_lse(x, y, scale)
    form, lses = Form.of(x, y, scale), LogSumExps(row, row, column, column)
    return lambda tile: pair_divergence(form, form, lses, want_x=True, want_y=False, config=tile)


class _Towers(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def _curvature(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> Launch:
    from .curvature import curvature_sums
    from .form import Form
    from .row_col_lse import row_col_lse

    row, column = row_col_lse(x, y, scale)
    form, along = Form.of(x, y, scale), _Towers(x.float(), y.float())
    return lambda tile: curvature_sums(form, along, along, row_lse=row, column_lse=column, diagonal=0, config=tile)


_SWEEPS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Launch]] = {
    "statistics": _statistics,
    "kept statistics": functools.partial(_statistics, keep=True),
    "rows": _rows,
    "kept rows": functools.partial(_rows, keep=True),
    "anchors": _anchors,
    "gradient": _gradient,
    "one-sided gradient": functools.partial(_gradient, one_sided=True),
    "scaled gradient": _scaled_gradient,
    "sigmoid": _sigmoid,
    "pair": _pair,
    "curvature": _curvature,
}


def event_timer(call: Callable[[], object]) -> float:
    """Milliseconds by the card's own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the order, and print or write the row; 2 without a card."""
    parser = argparse.ArgumentParser(
        description="Time the tiles of a kernel kind on this card; write a row of the table."
    )
    parser.add_argument("kind", choices=sorted(_SWEEPS))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--columns", type=int, default=32768)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--write", action="store_true", help=f"write the row into {TABLE_FILE.name}")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA device: tiles are timed on the card they are for\n")
        return 2
    capability = capability_of(torch.device("cuda"))
    assert capability is not None
    dtype = DTYPES[chosen.dtype]
    bits = 8 * dtype.itemsize
    tiles = candidates(chosen.kind, bits, capability)
    launch = launch_of(chosen.kind, dtype, chosen.rows, chosen.columns, chosen.width)
    measured = measure(tiles, launch, event_timer)
    for tile, milliseconds in measured:
        print(f"{milliseconds:9.3f} ms  {tile}")
    best = measured[0]
    own = next((m.milliseconds for m in measured if m.tile == tiles[0]), float("inf"))
    row = Row(capability, chosen.kind, bits, NARROW if chosen.width <= NARROW else ANY, best.tile)
    card = torch.cuda.get_device_name().removeprefix("NVIDIA ").split()[0]
    remark = f"{card}, d={chosen.width}: {best.milliseconds:.3g} ms, was {own:.3g}"
    print(row_line(row, remark).strip())
    if chosen.write:
        TABLE_FILE.write_text(with_row(TABLE_FILE.read_text(encoding="utf-8"), row, remark), encoding="utf-8")
        print(f"wrote {TABLE_FILE}; now run tests/aot, which holds every row to its budget")
    return 0


if __name__ == "__main__":
    sys.exit(main())
