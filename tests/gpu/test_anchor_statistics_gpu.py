# SPDX-License-Identifier: Apache-2.0
"""FastCLIP's forward on a card: the interpreter's cases, bf16 as well, at sizes and widths of real batches."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import sweep_cases as cases

SCALED = pytest.mark.parametrize("scaled", [False, True], ids=["one scale", "scales"])
DTYPES = pytest.mark.parametrize("dtype", cases.TOLERANCE, ids=str)
# (N, M, d): whole tiles; ragged rows, columns and width; more columns than programs; a width of unaligned rows.
SHAPES = [(4096, 4096, 512), (4000, 4099, 768), (100, 20000, 640), (300, 2049, 666), (1, 1, 6), (130, 131, 7)]


@pytest.fixture(scope="module")
def backend():
    pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")
    from clipkit.engine import triton_backend

    return triton_backend


def on_card(arguments):
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


def check(arguments):
    assert max(cases.anchor_errors(arguments, device="cuda")) <= 2.0


@SCALED
@DTYPES
@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_anchor_statistics_equal_float64(backend, rows, columns, width, dtype, scaled):
    check(cases.anchors("unit", rows, columns, width, dtype, scaled=scaled))


@SCALED
@DTYPES
@pytest.mark.parametrize("data", cases.DATA)
def test_every_kind_of_data(backend, data, dtype, scaled):
    check(cases.anchors(data, 700, 900, 512, dtype, scaled=scaled))


@DTYPES
def test_two_runs_give_the_same_bits(backend, dtype):
    arguments = on_card(cases.anchors("unit", 2000, 4096, 512, dtype, scaled=True))
    first, second = (backend.anchor_statistics(**arguments) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_waits_for_the_device_and_memory_does_not_grow_with_the_columns(backend):
    arguments = on_card(cases.anchors("unit", 32768, 32768, 64, torch.bfloat16, scaled=True))
    backend.anchor_statistics(**arguments)  # compilation and the library's lazy initialisation
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        backend.anchor_statistics(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 16 << 20
