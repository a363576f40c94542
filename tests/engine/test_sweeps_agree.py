# SPDX-License-Identifier: Apache-2.0
"""Every sweep of the compiled CPU backend: equal to float64 whatever the shapes, the data and the instruction set, and
equal to itself to the bit whatever the threads.
"""

from __future__ import annotations

import pytest
import torch

from clipkit.engine import cpu_backend, sweeps
from clipkit.engine.cpu_backend import tiles
from tests.engine.sweep_cases import SWEEPS, Pair
from tests.reference.naive import unit

FP32 = torch.float32

pytestmark = pytest.mark.skipif(
    cpu_backend.obstacle(torch.device("cpu"), FP32) is not None,
    reason="clipkit was installed without its compiled part",
)

every_sweep = pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS.keys())


def towers(rows, columns, width):
    return unit(rows, width, 1, FP32), unit(columns, width, 2, FP32)


def assert_equals_float64(sweep, x, y, scale, bound=3e-6):
    """Within `bound`, or twice the error of the backend in plain torch at the same precision."""
    ours, plain = (sweep(Pair(x, y, scale, FP32, backend)) for backend in ("cpu", "torch"))
    truth = sweep(Pair(x, y, scale, torch.float64, "torch"))
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        assert ours[name].dtype == FP32, name
        assert ours[name].shape == expected.shape, name
        finite = expected.isfinite()  # the log-sum-exp of nothing is -inf
        assert torch.equal(ours[name].double()[~finite], expected[~finite]), name
        size = expected[finite].norm().clamp_min(1e-6)
        error, theirs = ((run[name].double() - expected)[finite].norm() / size for run in (ours, plain))
        assert error <= max(bound, 2.0 * float(theirs)), f"{name}: {float(error):.1e}, plain torch {float(theirs):.1e}"


@every_sweep
@pytest.mark.parametrize("rows, columns, width", [(1, 3, 3), (2, 300, 7), (65, 129, 40), (700, 1100, 12)])
def test_equals_float64_at_ragged_shapes(sweep, rows, columns, width):
    assert_equals_float64(sweep, *towers(rows, columns, width), 9.0)


ANY_SHAPE = ["log_sum_exps", "labelled_sigmoid_sweep", "softmax_sweep", "softmax_sweep_detached", "pair_divergence"]
"""Sweeps in which not every row has a column of its own."""


@pytest.mark.parametrize("name", ANY_SHAPE)
def test_more_rows_than_columns(name):
    assert_equals_float64(SWEEPS[name], *towers(700, 33, 8), 9.0)


@every_sweep
@pytest.mark.parametrize("columns", [0, 5])
def test_no_rows_are_legal(sweep, columns):
    assert_equals_float64(sweep, *towers(0, columns, 6), 9.0)


@pytest.mark.parametrize("name", ["log_sum_exps", "labelled_sigmoid_sweep", "pair_divergence"])
def test_no_columns_are_legal(name):
    assert_equals_float64(SWEEPS[name], *towers(5, 0, 6), 9.0)


@every_sweep
def test_any_strides_will_do(sweep):
    wide = unit(140, 24, 0, FP32)
    assert_equals_float64(sweep, wide[:60, ::2], wide.T[:12].T[:100], 6.0)


DATA = {
    "a cone": lambda x: torch.nn.functional.normalize(x + 3.0 / x.shape[1] ** 0.5, dim=1),
    "an outlier": lambda x: torch.cat([x[:1] * 12.0, x[1:]]),
    "duplicates": lambda x: x[torch.arange(len(x)) // 7],
    "unnormalised": lambda x: x * 10.0,
}


@every_sweep
@pytest.mark.parametrize("scale", [-30.0, 100.0, 200.0])
@pytest.mark.parametrize("data", DATA.values(), ids=DATA.keys())
def test_equals_float64_at_extremes(sweep, data, scale):
    """Logits of up to 1e4: fp32 rounds them by 5e-4, so what depends on them exponentially is wrong by as much."""
    assert_equals_float64(sweep, *map(data, towers(140, 180, 16)), scale)


@every_sweep
@pytest.mark.parametrize("instructions", ["avx2", "portable"])
def test_narrower_vectors_agree(sweep, instructions):
    native = pytest.importorskip("clipkit._native")
    if instructions not in native.instruction_sets():
        pytest.skip(f"this build or this processor has no {instructions}")
    usual = native.instruction_set()
    native.use_instruction_set(instructions)
    try:
        assert_equals_float64(sweep, *towers(61, 70, 9), 20.0)
    finally:
        native.use_instruction_set(usual)


@every_sweep
def test_nan_reaches_the_results(sweep):
    x, y = towers(40, 44, 6)
    x[5, 2] = float("nan")
    ours, truth = sweep(Pair(x, y, 4.0, FP32, "cpu")), sweep(Pair(x, y, 4.0, torch.float64, "torch"))
    for name, expected in truth.items():
        assert expected.isnan().any(), name
        assert torch.equal(ours[name].isnan(), expected.isnan()), name


@every_sweep
def test_the_number_of_threads_does_not_show(sweep, monkeypatch):
    monkeypatch.setattr(tiles, "_SMALLEST", 128)  # many tiles of a small form
    x, y = towers(450, 600, 24)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5, 2):
            torch.set_num_threads(threads)
            runs.append(sweep(Pair(x, y, 15.0, FP32, "cpu")))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for name, value in run.items():
            assert torch.equal(value, runs[0][name]), name


def test_an_error_in_one_thread_ends_the_sweep(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def work(rows, columns):
        if rows.start and columns.start:
            raise RuntimeError("a tile failed")

    with pytest.raises(RuntimeError, match="a tile failed"):
        tiles.over_tiles((slice(0, 2000), slice(0, 2000)), work, like=torch.empty(0), buffers=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_neither_record_nor_refuse(threads):
    """Recording gradients is a state of each thread, and so is inference mode."""
    x, y = towers(300, 300, 8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = sweeps.log_sum_exps(x, y, torch.tensor(5.0), diagonal=None, backend="cpu")
        with torch.inference_mode():
            inside = sweeps.log_sum_exps(x, y, torch.tensor(5.0), diagonal=None, backend="cpu")
        leaves = [tower.clone().requires_grad_() for tower in (x, y)]
        recording = sweeps.log_sum_exps(*leaves, torch.tensor(5.0), diagonal=None, backend="cpu")
    finally:
        torch.set_num_threads(before)
    for other in (inside, recording):
        assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(expected, other, strict=True))
