# SPDX-License-Identifier: Apache-2.0
"""The tests of csrc can fail: each of these builds of the CPU's passes, the finaliser and the repair has one thing
broken, and a test shows it. (Breaks of the Hopper sweep are in test_hopper_sweep.py.)
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from tests.native import test_merge, test_repair
from tests.native import test_tile_passes as checks
from tests.native.tiles import Passes

CSRC = Path(__file__).resolve().parents[2] / "csrc"
MODEL = Path(__file__).with_name("broken_model.cpp")
AFTER_THE_TILE = {"tile_statistics": 7, "tile_gradient": 7, "tile_online_softmax": 6, "tile_sigmoid": 5}
"""How many addresses and numbers follow the tile."""

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the broken builds want g++")


class Mutation(NamedTuple):
    """Text of a header of csrc, what it becomes, and a test that must notice."""

    what: str
    file: str
    text: str
    becomes: str
    check: Callable[..., None]


def of_passes(test: Callable[..., None], **given: Any) -> Callable[[SimpleNamespace], None]:
    return lambda native: test(Passes(native, "portable"), **given)


def of_repair(test: Callable[..., None], **given: Any) -> Callable[[SimpleNamespace], None]:
    def check(native: SimpleNamespace) -> None:
        with mock.patch("clipkit.engine.cuda_backend.finaliser.native", return_value=native):
            test(**given)

    return check


# Of two columns a row's largest logit is often negative: then what is not there, a logit of zero, outweighs it.
statistics = of_passes(checks.test_row_and_column_statistics, rows=127, columns=2, padding=5)
far_below = of_passes(checks.test_rows_and_columns_far_below_the_others_are_not_lost, scale=100.0)
positives = of_passes(checks.test_positives_are_left_out_and_their_logits_returned, scale=3.0, first=7)
weights = of_passes(checks.test_exponential_weights, rows=63, columns=65, terms="both")
online = of_passes(checks.test_online_softmax, rows=63, columns=65)
sigmoid = of_passes(checks.test_sigmoid, rows=63, columns=65, scale=10.0)
merged = partial(test_merge.test_merged_rows_and_columns_equal_float64, rows=63, columns=130)
flagged = test_merge.test_lines_that_lost_terms_are_flagged_and_only_those
restored = of_repair(test_repair.test_merging_then_repairing_equals_float64_where_offsets_flushed_rows)
listed = partial(
    of_repair, test_repair.test_listed_lines_equal_float64_and_others_are_not_touched, dtype=torch.float32, diagonal=2
)
one_column, many_columns = listed(rows=1, columns=1, width=1), listed(rows=3, columns=2500, width=40)

MUTATIONS = [
    Mutation(
        "diagonal not folded into the weights", "cpu/tile_gradients.h",
        "if (j >= 0) line[j] = work.positive_weight[i];", "static_cast<void>(j);", weights,
    ),
    Mutation(
        "diagonal at the column of the whole matrix, not of the tile", "cpu/tile_statistics.h",
        "positives.column[i] - positives.first", "positives.column[i]", positives,
    ),
    Mutation(
        "every column with the offset of the first", "cpu/tile_gradients.h",
        "lanes.load(work.column_offset + j)", "lanes.load(work.column_offset)", weights,
    ),
    Mutation(
        "columns past the edge summed", "cpu/tile_statistics.h",
        "lanes.keep(exponential<false>(logit(lanes.load(line[r] + j), factor) - offset[r]))",
        "exponential<false>(logit(lanes.load(line[r] + j), factor) - offset[r])", statistics,
    ),
    Mutation(
        "columns past the edge among the largest", "cpu/tile_statistics.h",
        "logit(lanes.load(line + j), factor) - lanes.beyond(INFINITY)", "logit(lanes.load(line + j), factor)",
        far_below,
    ),
    Mutation(
        "nothing repaired", "cpu/tile_statistics.h",
        "if (any(lanes.load(down.sum + j) + lanes.beyond(1.0f) < least))", "if (least < 0.0f)", far_below,
    ),
    Mutation(
        "what was summed not brought to the new offset", "cpu/tile_gradients.h",
        "total *= work.shrink[i];", "", online,
    ),
    Mutation(
        "labels not taken out of the negatives", "cpu/tile_sigmoid.h",
        "line[j] = masked_product(factor);", "", sigmoid,
    ),
    Mutation(
        "every tile merged with the offset of the first", "merge_line.h",
        "expf(offsets[tile * partials.offset_tile_stride] - reference)", "expf(offsets[0] - reference)", merged,
    ),
    Mutation("nothing suspected", "merge_line.h", "log_sum < largest - kSuspectGap", "log_sum != log_sum", flagged),
    Mutation("repaired lines not stored", "cuda/repair.h", "log_sum[suspects.list[position]] =", "(void)", restored),
    Mutation("another pair left out", "cuda/repair.h", "column != line + diagonal", "column != line", one_column),
    Mutation(
        "the last column of every part left out", "cuda/repair.h",
        "column < last; column += kThreads", "column + 1 < last; column += kThreads", one_column,
    ),
    Mutation(
        "the first part of the columns taken for all", "cuda/repair.h",
        "split < suspects.splits; ++split", "split < 1; ++split", many_columns,
    ),
]  # fmt: skip


def built(folder: Path, mutation: Mutation | None) -> SimpleNamespace:
    """What clipkit._native has of it, from the sources or from a copy with the mutation made."""
    return _as_module(library_of(folder, mutation, MODEL, "cpu/passes_portable.cpp"))


def library_of(folder: Path, mutation: Mutation | None, model: Path, *sources: str) -> ctypes.CDLL:
    """A model and sources of csrc, in which one thing may be broken, compiled and loaded."""
    csrc = shutil.copytree(CSRC, folder / "csrc")
    if mutation is not None:
        path = csrc / mutation.file
        text = path.read_text(encoding="utf-8")
        assert mutation.text in text, f"{mutation.file} has no `{mutation.text}` any more: say anew how to break it"
        path.write_text(text.replace(mutation.text, mutation.becomes), encoding="utf-8")
    library = folder / "broken.so"
    files = [str(model), *(str(csrc / source) for source in sources)]
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", f"-I{csrc}", *files, "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return ctypes.CDLL(str(library))


def _as_module(library: ctypes.CDLL) -> SimpleNamespace:
    """Called as clipkit._native is."""
    tile = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_float]
    module = SimpleNamespace(Tile=lambda *shape: shape)
    for name, count in AFTER_THE_TILE.items():
        function = library[name]
        function.argtypes = [*tile, *[ctypes.c_int64] * count]
        function.restype = ctypes.c_double if name == "tile_sigmoid" else None
        setattr(module, name, lambda tile, *rest, function=function: function(*tile, *rest))

    def merge_partials(*arguments: int, **options: int) -> None:
        """Nine arguments, then perhaps the list and its length; a stream and carried states are none."""
        given = [*arguments[:11], *[0] * (11 - len(arguments))]
        library.merge_partials(*map(ctypes.c_int64, given))

    def repair_lines(dtype: str, *arguments: Any) -> None:
        *form, diagonal, lines, listed, splits, partials, log_sum, _ = arguments
        skip = [int(diagonal is not None), diagonal or 0]
        library.repair_lines(*map(ctypes.c_int64, [*form, *skip, lines, listed, splits, partials, log_sum]))

    module.merge_partials, module.repair_lines = merge_partials, repair_lines
    return module


def test_what_is_not_broken_passes_every_check(tmp_path):
    native = built(tmp_path, None)
    for mutation in MUTATIONS:
        mutation.check(native)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_what_is_broken_fails_a_check(mutation, tmp_path):
    native = built(tmp_path, mutation)
    with pytest.raises(AssertionError):
        mutation.check(native)
