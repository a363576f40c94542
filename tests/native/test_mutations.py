# SPDX-License-Identifier: Apache-2.0
"""The tests of the compiled passes can fail: each of these builds has one thing broken, and a test of the passes shows
it.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from tests.native import test_tile_passes as checks
from tests.native.tiles import Passes

CSRC = Path(__file__).resolve().parents[2] / "csrc"
MODEL = Path(__file__).with_name("passes_model.cpp")
ARGUMENTS = {"tile_statistics": 7, "tile_gradient": 7, "tile_online_softmax": 6, "tile_sigmoid": 5}
"""How many addresses and numbers follow the tile."""

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the broken builds want g++")


class Mutation(NamedTuple):
    """Text of a header of csrc/cpu, what it becomes, and a test that must notice."""

    what: str
    file: str
    text: str
    becomes: str
    check: Callable[[Passes], None]


# Of two columns a row's largest logit is often negative: then what is not there, a logit of zero, outweighs it.
statistics = partial(checks.test_row_and_column_statistics, rows=127, columns=2, padding=5)
far_below = partial(checks.test_rows_and_columns_far_below_the_others_are_not_lost, scale=100.0)
positives = partial(checks.test_positives_are_left_out_and_their_logits_returned, scale=3.0, first=7)
weights = partial(checks.test_exponential_weights, rows=63, columns=65, terms="both")
online = partial(checks.test_online_softmax, rows=63, columns=65)
sigmoid = partial(checks.test_sigmoid, rows=63, columns=65, scale=10.0)

MUTATIONS = [
    Mutation(
        "diagonal not folded into the weights", "tile_gradients.h",
        "if (j >= 0) line[j] = work.positive_weight[i];", "static_cast<void>(j);", weights,
    ),
    Mutation(
        "diagonal at the column of the whole matrix, not of the tile", "tile_statistics.h",
        "positives.column[i] - positives.first", "positives.column[i]", positives,
    ),
    Mutation(
        "every column with the offset of the first", "tile_gradients.h",
        "lanes.load(work.column_offset + j)", "lanes.load(work.column_offset)", weights,
    ),
    Mutation(
        "columns past the edge summed", "tile_statistics.h",
        "lanes.keep(exponential<false>(logit(lanes.load(line[r] + j), factor) - offset[r]))",
        "exponential<false>(logit(lanes.load(line[r] + j), factor) - offset[r])", statistics,
    ),
    Mutation(
        "columns past the edge among the largest", "tile_statistics.h",
        "logit(lanes.load(line + j), factor) - lanes.beyond(INFINITY)", "logit(lanes.load(line + j), factor)",
        far_below,
    ),
    Mutation(
        "nothing repaired", "tile_statistics.h",
        "if (any(lanes.load(down.sum + j) + lanes.beyond(1.0f) < least))", "if (least < 0.0f)", far_below,
    ),
    Mutation(
        "what was summed not brought to the new offset", "tile_gradients.h",
        "total *= work.shrink[i];", "", online,
    ),
    Mutation(
        "labels not taken out of the negatives", "tile_sigmoid.h",
        "line[j] = masked_product(factor);", "", sigmoid,
    ),
]  # fmt: skip


def built(folder: Path, mutation: Mutation | None) -> Passes:
    """The portable passes of the sources, or of a copy with the mutation made."""
    sources = shutil.copytree(CSRC, folder / "csrc")
    if mutation is not None:
        path = sources / "cpu" / mutation.file
        text = path.read_text(encoding="utf-8")
        assert mutation.text in text, f"{mutation.file} has no `{mutation.text}` any more: say anew how to break it"
        path.write_text(text.replace(mutation.text, mutation.becomes), encoding="utf-8")
    library = folder / "passes.so"
    files = [str(MODEL), str(sources / "cpu" / "passes_portable.cpp")]
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", f"-I{sources}", *files, "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return Passes(_as_module(ctypes.CDLL(str(library))), "portable")


def _as_module(library: ctypes.CDLL) -> SimpleNamespace:
    """Called as clipkit._native is."""
    module = SimpleNamespace(Tile=lambda *shape: shape)
    for name, count in ARGUMENTS.items():
        function = library[name]
        tile = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_float]
        function.argtypes = [*tile, *[ctypes.c_int64] * count]
        function.restype = ctypes.c_double if name == "tile_sigmoid" else None
        setattr(module, name, lambda tile, *rest, function=function: function(*tile, *rest))
    return module


def test_the_passes_as_they_are_pass_every_check(tmp_path):
    passes = built(tmp_path, None)
    for mutation in MUTATIONS:
        mutation.check(passes)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_broken_passes_fail_a_check(mutation, tmp_path):
    passes = built(tmp_path, mutation)
    with pytest.raises(AssertionError):
        mutation.check(passes)
