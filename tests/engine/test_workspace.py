# SPDX-License-Identifier: Apache-2.0
"""Products kept between two sweeps: the same bits, one product less, and not a byte more than was granted."""

from __future__ import annotations

import pytest
import torch

import clipkit
from bench.record import peak_extra_mib
from clipkit.engine import cpu_backend, sweeps
from clipkit.engine.workspace import Workspace
from clipkit.losses import ClipLoss
from tests.reference.naive import unit

BACKENDS = ["torch"] + ["cpu"] * (cpu_backend.obstacle(torch.device("cpu"), torch.float32) is None)

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def pair(rows, width, dtype=torch.float32):
    return [unit(rows, width, seed, dtype).requires_grad_() for seed in (0, 1)]


def loss_and_gradients(image, text, backend, workspace):
    scale = torch.tensor(30.0, dtype=torch.float64 if image.dtype == torch.float64 else None, requires_grad=True)
    loss = clipkit.clip_loss(image, text, scale, label_smoothing=0.1, workspace=workspace, backend=backend)
    return loss, *torch.autograd.grad(loss, [image, text, scale])


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows, width", [(1, 3), (63, 7), (700, 24), (1300, 16)])
def test_results_are_the_same_to_the_bit(backend, dtype, rows, width):
    if backend == "cpu" and dtype == torch.float64:
        pytest.skip("float64 is plain torch's")
    features = pair(rows, width, dtype)
    without = loss_and_gradients(*features, backend, None)
    for workspace in (0, 8 * rows * rows - 1, 8 * rows * rows):
        kept = loss_and_gradients(*features, backend, workspace)
        assert all(torch.equal(a, b) for a, b in zip(kept, without, strict=True))


def two_sweeps(x, y, workspace, backend, change=lambda: None, diagonal=1):
    """Rectangular, with scales of lines; `change` is called between the sweeps."""
    form = (x, y, torch.tensor(15.0))
    row, column = sweeps.log_sum_exps(*form, diagonal=diagonal, workspace=workspace, backend=backend)
    change()
    return (
        row,
        column,
        *sweeps.exponential_products(
            *form,
            row_offset=row + 1.0,
            column_offset=column + 1.0,
            row_scale=torch.linspace(0.5, 1.0, len(x)),
            diagonal=diagonal,
            diagonal_weight=-torch.ones(len(x)),
            workspace=workspace,
            backend=backend,
        ),
    )


@every_backend
def test_any_threads_and_any_shape(backend):
    x, y = unit(700, 9, 3, torch.float32), unit(1111, 9, 4, torch.float32)
    threads, without = torch.get_num_threads(), two_sweeps(x, y, None, backend)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            kept = two_sweeps(x, y, Workspace(700 * 1111 * 4), backend)
            if backend == "cpu" or count == threads:  # torch's own products are shared out by their number
                assert all(torch.equal(a, b) for a, b in zip(kept, without, strict=True))
    finally:
        torch.set_num_threads(threads)


@every_backend
@pytest.mark.parametrize("missing", [0, 1])
def test_the_second_sweep_uses_what_was_kept_and_only_that(backend, missing):
    """Without the towers that made them: they are gone, all zeros, when the second sweep begins."""
    x, y = unit(300, 9, 3, torch.float32), unit(400, 9, 4, torch.float32)
    workspace, expected = Workspace(300 * 400 * 4 - missing), two_sweeps(x, y, None, backend)

    class Forgetful(Workspace):
        def take(self):
            products = super().take()
            assert (products is None) == bool(missing)
            if products is not None:
                products.zero_()
            return products

    forgetful = Forgetful(300 * 400 * 4 - missing)
    assert all(torch.equal(a, b) for a, b in zip(two_sweeps(x, y, workspace, backend), expected, strict=True))
    changed = two_sweeps(x, y, forgetful, backend)
    assert torch.equal(changed[2], expected[2]) == bool(missing)
    assert workspace.take() is None, "used once, and freed with the sweep"


def test_bf16_products_are_made_again_where_that_is_faster():
    if "cpu" not in BACKENDS or not cpu_backend.compiled.compiled().bf16_kernels():
        pytest.skip("this processor or compiler multiplies no bf16")
    x, workspace = unit(64, 8, 0, torch.bfloat16), Workspace(1 << 30)
    sweeps.log_sum_exps(x, x, torch.tensor(9.0), diagonal=0, workspace=workspace, backend="cpu")
    assert workspace.take() is None


@every_backend
def test_the_peak_is_what_was_granted_and_less_without_gradients(backend, monkeypatch):
    made = []
    keep = Workspace.keep
    monkeypatch.setattr(Workspace, "keep", lambda *given: made.append(keep(*given)) or made[-1])
    features = pair(2048, 8)
    loss_and_gradients(*features, backend, 1 << 30)
    with torch.no_grad():
        clipkit.clip_loss(*features, 9.0, workspace=1 << 30, backend=backend)
    assert [0 if memory is None else memory.nbytes for memory in made] == [2048 * 2048 * 4, 0]
    monkeypatch.undo()
    made.clear()
    granted = 2048 * 2048 * 4 / 2**20
    without, within = (
        peak_extra_mib(lambda budget=budget: loss_and_gradients(*features, backend, budget)) for budget in (0, 1 << 30)
    )
    assert within <= without + granted + 1


@pytest.mark.parametrize(
    "workspace, error, message",
    [
        (-1, ValueError, r"workspace: got -1; want a whole number of bytes"),
        (1.5, TypeError, r"workspace: got a float; want a whole number of bytes"),
        (True, TypeError, r"workspace: got a bool"),
        ("2G", TypeError, r"workspace: got a str"),
    ],
)
def test_a_workspace_that_is_no_number_of_bytes_is_refused(workspace, error, message):
    with pytest.raises(error, match=message):
        clipkit.clip_loss(*pair(3, 4), 1.0, workspace=workspace)


def test_the_module_and_the_compiler_hand_it_on(monkeypatch):
    image, text = pair(20, 6)
    budgets = []
    keep = Workspace.keep

    def note(self, *given):
        budgets.append(self._budget)
        return keep(self, *given)

    monkeypatch.setattr(Workspace, "keep", note)
    eager = ClipLoss(workspace=4321)(image, text, 5.0)
    torch._dynamo.reset()
    compiled = torch.compile(ClipLoss(workspace=4321), fullgraph=True, backend="aot_eager")(image, text, 5.0)
    assert torch.equal(eager, compiled)
    assert budgets == [4321, 4321]
