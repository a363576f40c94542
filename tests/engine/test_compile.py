# SPDX-License-Identifier: Apache-2.0
"""Every loss goes through torch.compile as one node: no graph break, the same bits, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_utils import CrossRefFakeMode

from tests.engine.operators import Operators
from tests.reference.cases import CASES, value_and_gradients


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fullgraph_equals_eager(case):
    inputs, constants = case.make(12, 6, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda **values: 2.0 * case.ours(**values), fullgraph=True, backend="aot_eager")
    eager = value_and_gradients(lambda **values: 2.0 * case.ours(**values), inputs, constants)
    ours = value_and_gradients(compiled, inputs, constants)
    assert all(torch.equal(ours[name], eager[name]) for name in eager)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_second_batch_size_is_the_last_compilation(case):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda **values: 2.0 * case.ours(**values), fullgraph=True, backend=counter)
    for rows in (12, 7, 20, 5):
        value_and_gradients(compiled, *case.make(rows, 6, torch.float32))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_operators_return_what_the_compiler_was_told(case):
    """Shapes, dtypes and strides, also for features that are transposed views: a compiled graph relies on them."""
    inputs, constants = (
        {n: v.T.contiguous().T if v.dim() == 2 else v for n, v in values.items()}
        for values in case.make(12, 6, torch.float32)
    )
    with CrossRefFakeMode(ignore_op_fn=lambda operator: operator.namespace != "clipkit"):
        value_and_gradients(case.ours, inputs, constants)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_registration_of_the_operators_holds(case):
    """Schema, fake kernels and autograd registration of what a loss calls, by torch's own checker."""
    inputs, constants = case.make(6, 5, torch.float32)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    with Operators() as called:
        case.ours(**leaves, **constants)
    assert called.calls
    for operator, arguments in called.calls:
        copies = [value.detach().clone() if isinstance(value, torch.Tensor) else value for value in arguments]
        for value in copies[:3]:
            value.requires_grad_()
        torch.library.opcheck(
            operator, tuple(copies), test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )
