# SPDX-License-Identifier: Apache-2.0
"""Whatever backend is asked for by name gives the same numbers, and one that cannot run says why."""

from __future__ import annotations

import pytest
import torch

import clipkit
from clipkit.engine import dispatch
from tests.reference import naive
from tests.reference.cases import BY_NAME, CASES, value_and_gradients
from tests.reference.naive import unit

SHAPES = [(2, 6), (63, 7), (130, 40), (700, 12), (2500, 8)]


def _skip_unless_compiled() -> None:
    from clipkit.engine import cpu_backend

    reason = cpu_backend.obstacle(torch.device("cpu"), torch.float32)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("rows, width", SHAPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_compiled_backend_equals_float64(case, rows, width):
    _skip_unless_compiled()
    inputs, constants = case.make(rows, width, torch.float32)
    truth = value_and_gradients(
        lambda **values: case.ours(**values, backend="torch"),
        {name: value.double() for name, value in inputs.items()},
        {n: v.double() if v.is_floating_point() else v for n, v in constants.items()},
    )
    ours = value_and_gradients(lambda **values: case.ours(**values, backend="cpu"), inputs, constants)
    for name, expected in truth.items():
        error = float((ours[name].double() - expected).norm() / expected.norm().clamp_min(1e-30))
        assert error <= 3e-6, f"{name}: {error:.1e}"


def test_the_compiled_backend_takes_views_with_any_strides():
    _skip_unless_compiled()
    wide = unit(40, 12, 0, torch.float32)
    image, text = wide.T[:6].T, wide[:, ::2]
    torch.testing.assert_close(
        clipkit.clip_loss(image, text, 9.0, backend="cpu"), clipkit.clip_loss(image, text, 9.0, backend="torch")
    )


@pytest.mark.parametrize("scale", [-300.0, -1e-3, 0.0, 1e-20, 300.0])
def test_any_scale_will_do(scale):
    """Positives are left out by a mask: one that assumes a positive scale turns it round, or into NaN at zero."""
    _skip_unless_compiled()
    inputs, _ = BY_NAME["clip"].make(9, 5, torch.float32)
    pair = {name: inputs[name] for name in ("a", "b")}
    truth = value_and_gradients(naive.clip, {"image": pair["a"].double(), "text": pair["b"].double()}, {"scale": scale})
    for backend in ("cpu", "torch"):
        ours = value_and_gradients(lambda a, b, name=backend: clipkit.clip_loss(a, b, scale, backend=name), pair, {})
        for mine, exact in zip(ours.values(), truth.values(), strict=True):
            torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-6 * max(1.0, abs(scale)))


def test_the_number_of_threads_does_not_show():
    _skip_unless_compiled()
    inputs, _ = BY_NAME["clip"].make(1500, 8, torch.float32)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            runs.append(value_and_gradients(lambda a, b, s: clipkit.clip_loss(a, b, s, backend="cpu"), inputs, {}))
    finally:
        torch.set_num_threads(before)
    # The features' gradients to the bit; the scale's is a sum of torch's own, shared out among its threads.
    assert all(torch.equal(run[name], runs[0][name]) for run in runs[1:] for name in ("loss", "a", "b"))
    assert torch.equal(runs[1]["s"], runs[2]["s"])


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"backend: got 'fast'.*'torch'"):
        clipkit.clip_loss(torch.ones(2, 2), torch.ones(2, 2), 1.0, backend="fast")


def test_a_backend_that_cannot_serve_the_tensors_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"backend: got 'triton' for torch.float32 tensors on cpu"):
        clipkit.clip_loss(torch.ones(2, 2), torch.ones(2, 2), 1.0, backend="triton")
    with pytest.raises(ValueError, match="fp32"):
        clipkit.clip_loss(torch.ones(2, 2).double(), torch.ones(2, 2).double(), 1.0, backend="cpu")


def test_the_environment_chooses_a_backend(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        clipkit.clip_loss(torch.ones(2, 2), torch.ones(2, 2), 1.0)
    assert clipkit.clip_loss(torch.ones(2, 2), torch.ones(2, 2), 1.0, backend="torch") > 0


def test_the_report_names_every_backend_once_per_device_and_gives_reasons():
    lines = [line for line in dispatch.report() if line.device == "cpu"]
    assert [line.name for line in lines] == list(dispatch._MODULES)
    assert all(line.reason for line in lines)
    served_by_default = [dtype for line in lines if line.default for dtype in line.reason.split(", ")]
    assert served_by_default
