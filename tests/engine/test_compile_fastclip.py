# SPDX-License-Identifier: Apache-2.0
"""FastCLIP's operator with what only `FastCLIPLoss` asks of it, ids and individual scales, is one node of a graph too,
and nothing in a step of the loss makes the host wait for a device.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_utils import CrossRefFakeMode

from clipkit.functional.global_contrastive import surrogate
from clipkit.losses import FastCLIPLoss
from clipkit.parallel import SampleTable
from tests.engine.test_compile import Operators
from tests.interpreter.no_waiting import NoWaiting
from tests.reference.cases import value_and_gradients
from tests.reference.naive import unit

FORMS = ["common", "individual", "individual, weighted"]


def call(form: str, rows: int):
    """(function of image, text and, where it is common, the scale; its inputs)."""
    inputs = {"image": unit(rows, 6, 1, torch.float32), "text": unit(rows, 6, 2, torch.float32)}
    constants = {"log_u": torch.linspace(-2, 1, 2 * rows).view(rows, 2), "ids": torch.arange(rows).flip(0)}
    if form == "common":
        inputs["scale"] = torch.tensor(7.0)
    else:
        constants["scale"] = torch.linspace(5, 20, 2 * rows).view(rows, 2)

    def run(**values: Tensor) -> Tensor:
        found = surrogate(**values, gamma=0.4, eps=1e-6, tau_weighted=form.endswith("weighted"))
        everyone = found.samples
        # the outputs without a gradient are looked at too, ids by their number
        return 2 * found.loss + found.log_u.sum() + everyone.positive.sum() + everyone.ids.sum()

    return run, inputs, constants


@pytest.mark.parametrize("form", FORMS)
def test_fullgraph_equals_eager_and_a_second_batch_size_is_the_last_compilation(form):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    run, *_ = call(form, 12)
    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for rows in (12, 7, 20):
        _, inputs, constants = call(form, rows)
        eager = value_and_gradients(run, inputs, constants)
        ours = value_and_gradients(compiled, inputs, constants)
        assert all(torch.equal(ours[name], eager[name]) for name in eager)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("form", FORMS)
def test_the_registration_holds(form):
    run, inputs, constants = call(form, 6)
    with CrossRefFakeMode(ignore_op_fn=lambda operator: operator.namespace != "clipkit"):
        value_and_gradients(run, inputs, constants)
    with Operators() as called:
        run(**{name: value.requires_grad_() for name, value in inputs.items()}, **constants)
    [(operator, arguments)] = called.calls
    copies = [value.detach().clone() if isinstance(value, Tensor) else value for value in arguments]
    for value in copies[: len(inputs)]:
        value.requires_grad_()
    torch.library.opcheck(
        operator, tuple(copies), test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )


@pytest.mark.parametrize("version", ["v0", "v1", "v2", "v3"])
def test_a_step_waits_for_no_device(version, monkeypatch):
    """Forward, backward and commit: ids are looked at on the host only, so that check is left out here."""
    monkeypatch.setattr(SampleTable, "check", lambda table, ids: None)
    loss = FastCLIPLoss(20, version, rho=1.0, backend="torch")  # the CPU backend may read what is on the host
    image, text = (unit(8, 6, seed, torch.float32).requires_grad_() for seed in (1, 2))
    scale, ids, skip = torch.tensor(9.0, requires_grad=True), torch.arange(8), torch.tensor(0.0)
    loss.table("cpu")
    with NoWaiting():
        loss.begin(ids)
        loss.image_ready(image)
        loss(image, text, scale, ids).backward()
        loss.commit(skip)
    assert loss.table().read(ids).isfinite().all()
