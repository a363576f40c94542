# SPDX-License-Identifier: Apache-2.0
"""How the losses sit in a user's graph: views, repeated backwards, second derivatives, nothing read from the device."""

from __future__ import annotations

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

import clipkit
from tests.reference import naive
from tests.reference.cases import CASES, value_and_gradients
from tests.reference.naive import unit

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_a_second_derivative_is_refused(case):
    """Silence would be worse: some losses keep their gradients as constants, whose derivative is zero to autograd."""
    inputs, constants = case.make(5, 4, torch.float64)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    gradients = torch.autograd.grad(case.ours(**leaves, **constants), list(leaves.values()), create_graph=True)
    with pytest.raises(NotImplementedError, match="got a second derivative of a clipkit loss; want a first one"):
        torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()


@every_case
def test_a_graph_may_be_walked_twice(case):
    inputs, constants = case.make(9, 5, torch.float32)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    loss = case.ours(**leaves, **constants)
    first = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, list(leaves.values()))))


@pytest.mark.parametrize("case", [c for c in CASES if "b" in c.make(2, 2, torch.float64)[0]], ids=lambda c: c.name)
def test_one_tensor_may_be_both_towers(case):
    inputs, constants = case.make(9, 5, torch.float64)
    shared = inputs.pop("b")
    inputs["a"] = shared
    ours, truth = (
        value_and_gradients(lambda a, call=call, **rest: call(a=a, b=a, **rest), inputs, constants)
        for call in (case.ours, case.naive)
    )
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)


def test_features_may_be_expanded_views_of_what_is_trained():
    row, text = unit(1, 4, 0).requires_grad_(), unit(6, 4, 1)
    (ours,) = torch.autograd.grad(clipkit.clip_loss(row.expand(6, 4), text, 9.0), row)
    (truth,) = torch.autograd.grad(naive.clip(row.expand(6, 4), text, 9.0), row)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)


def test_a_scale_of_higher_precision_than_the_features_keeps_its_type():
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    loss = clipkit.clip_loss(unit(6, 4, 0, torch.float32), unit(6, 4, 1, torch.float32), scale)
    loss.backward()
    assert (loss.dtype, scale.grad.dtype) == (torch.float32, torch.float64)


@every_case
def test_inference_mode_gives_the_same_value(case):
    inputs, constants = case.make(9, 5, torch.float32)
    with torch.inference_mode():
        inside = case.ours(**inputs, **constants)
    assert torch.equal(inside, case.ours(**inputs, **constants))


class _NothingReadFromTheDevice(TorchDispatchMode):
    """Raises where a kernel would make a GPU's host wait: a value read, or a shape that depends on values.

    The library's operators are entered, so that what they call is seen too. Integers on the CPU are the ranks' row
    counts; the operators keep them there on purpose.
    """

    WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator.namespace == "clipkit":
            with self:
                return OPDEFS[f"clipkit::{operator._opname}"]._init_fn(*arguments, **(options or {}))
        name = operator.overloadpacket.__name__
        features = any(isinstance(a, torch.Tensor) and a.is_floating_point() for a in arguments)
        assert name not in self.WAITING or not features, f"{operator} waits for the device"
        return operator(*arguments, **(options or {}))


@every_case
def test_the_torch_backend_never_waits_for_the_device(case):
    inputs, constants = case.make(9, 5, torch.float32)
    with _NothingReadFromTheDevice():
        value_and_gradients(lambda **values: case.ours(**values, backend="torch"), inputs, constants)


def test_the_guard_against_waiting_sees_into_the_operators():
    """The compiled CPU backend does read the scale: the guard must say so, or the test above proves nothing."""
    from clipkit.engine import cpu_backend

    reason = cpu_backend.obstacle(torch.device("cpu"), torch.float32)
    if reason:
        pytest.skip(reason)
    with _NothingReadFromTheDevice(), pytest.raises(AssertionError, match="waits for the device"):
        clipkit.clip_loss(torch.ones(2, 2), torch.ones(2, 2), 1.0, backend="cpu")


@every_case
def test_no_buffer_is_read_before_it_is_written(case, monkeypatch):
    """Fresh memory filled with NaN, as torch does in deterministic mode, changes no bit."""
    inputs, constants = case.make(70, 12, torch.float32)
    before = value_and_gradients(case.ours, inputs, constants)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        after = value_and_gradients(case.ours, inputs, constants)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(before[name], after[name]) for name in before)
