# SPDX-License-Identifier: Apache-2.0
"""The Hopper sweep on simulated multiprocessors: hopper_model.cpp and the kernel's own headers, built by the C++
compiler at hand, called by ctypes."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"
WARP_ROWS, TILE_COLUMNS, PAIR_ROWS = 16, 256, 256


class Plan(NamedTuple):
    pairs: int
    column_tiles: int
    pairs_per_item: int
    row_bands: int
    bands_per_group: int
    items: int
    row_groups: int
    column_strips: int


class Partials(NamedTuple):
    """Sums of exp(s - offset) and their offsets, in the finaliser's layout."""

    row_sums: torch.Tensor
    row_offsets: torch.Tensor
    column_sums: torch.Tensor
    column_offsets: torch.Tensor


@functools.cache
def model(edits: tuple[tuple[str, str], ...] = ()) -> ctypes.CDLL:
    """The simulation. With edits, (old text, new text), of the headers under test changed so: a mutant."""
    compiler = shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the simulation wants g++ on Linux")
    folder = Path(tempfile.mkdtemp(prefix="hopper-model-"))
    sources = shutil.copytree(CSRC, folder / "csrc")
    for old, new in edits:
        holders = [path for path in sorted((sources / "cuda").glob("hopper_*.h")) if old in path.read_text()]
        assert len(holders) == 1, f"{old!r} is in {len(holders)} headers"
        text = holders[0].read_text()
        assert text.count(old) == 1, f"{old!r} is not unique"
        holders[0].write_text(text.replace(old, new))
    library = folder / "model.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", f"-I{sources}", *(() if edits else ("-Wall", "-Werror"))]
    source = Path(__file__).with_name("hopper_model.cpp")
    result = subprocess.run([compiler, *flags, str(source), "-o", str(library)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = ctypes.CDLL(str(library))
    shutil.rmtree(folder)
    loaded.hopper_sweep.restype = ctypes.c_char_p
    loaded.hopper_descriptor.restype = ctypes.c_uint64
    return loaded


def plan(rows: int, columns: int, *, pairs_per_item: int = 0, clusters: int = 1) -> Plan:
    """The plan with items of that length; with 0 the one that is best for that many clusters."""
    out = (ctypes.c_int64 * len(Plan._fields))()
    model().hopper_plan(ctypes.c_int64(rows), ctypes.c_int64(columns), pairs_per_item, clusters, out)
    return Plan(*out)


def item(rows: int, columns: int, pairs_per_item: int, index: int) -> tuple[int, ...]:
    """(row band, first pair, end pair, column tile)."""
    out = (ctypes.c_int64 * 4)()
    model().hopper_item(ctypes.c_int64(rows), ctypes.c_int64(columns), pairs_per_item, index, out)
    return tuple(out)


def empty_partials(plan: Plan, rows: int, columns: int) -> Partials:
    """NaN everywhere: what the sweep does not write shows."""
    shapes = (
        (plan.column_tiles, rows),
        (plan.row_groups, plan.column_tiles),
        (plan.column_strips, columns),
        (plan.column_strips, plan.column_tiles),
    )
    return Partials(*(torch.full(shape, float("nan")) for shape in shapes))


def launch(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: float,
    partials: Partials,
    *,
    rows: range,
    diagonal: int | None,
    pairs_per_item: int,
    clusters: int,
    seed: int = 0,
    fault: int = 0,
    edits: Mapping[str, str] | None = None,
) -> str:
    """One launch over some rows of x, [n, d] and [m, d] contiguous; what the simulation had to complain about. As on
    the card, no cluster is launched without work."""
    items = plan(len(rows), y.shape[0], pairs_per_item=pairs_per_item).items
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y, *partials)]
    message = model(tuple((edits or {}).items())).hopper_sweep(
        addresses[0],
        ctypes.c_int64(x.shape[0]),
        addresses[1],
        ctypes.c_int64(y.shape[0]),
        ctypes.c_int64(x.shape[1]),
        int(x.dtype == torch.bfloat16),
        rows.start,
        len(rows),
        ctypes.c_float(scale),
        int(diagonal is not None),
        diagonal or 0,
        pairs_per_item,
        min(clusters, items),
        ctypes.c_uint64(seed),
        fault,
        *addresses[2:],
    )
    return message.decode()


def sweep(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: float,
    *,
    diagonal: int | None = None,
    pairs_per_item: int = 2,
    clusters: int = 1,
    **options,
) -> tuple[str, Partials]:
    """The whole of S in one launch: (complaint, partials)."""
    rows, columns = x.shape[0], y.shape[0]
    partials = empty_partials(plan(rows, columns, pairs_per_item=pairs_per_item), rows, columns)
    options = {"diagonal": diagonal, "pairs_per_item": pairs_per_item, "clusters": clusters, **options}
    return launch(x, y, scale, partials, rows=range(rows), **options), partials


def merged(partials: Partials) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column log-sum-exps of partials, in float64 and by the layout's definition."""
    tiles = partials.row_offsets.shape[1]
    rows, columns = partials.row_sums.shape[1], partials.column_sums.shape[1]
    row_offsets = partials.row_offsets.double().T.repeat_interleave(WARP_ROWS, 1)[:, :rows]
    column_offsets = partials.column_offsets.double().repeat_interleave(TILE_COLUMNS, 1)[:, :columns]
    assert row_offsets.shape[0] == tiles
    return (
        (row_offsets + partials.row_sums.double().log()).logsumexp(0),
        (column_offsets + partials.column_sums.double().log()).logsumexp(0),
    )
