# SPDX-License-Identifier: Apache-2.0
"""Every fused operation of the encoders equals its definition, on plain torch and compiled, and is an operator that
torch.compile, autocast and autograd can live with.
"""

from __future__ import annotations

import pytest
import torch

from clipkit.encoders import fused
from clipkit.engine import cpu_backend
from tests.encoders.fused_cases import CASES, EPS, errors, exact, values_and_gradients
from tests.engine.operators import Operators

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(params=["torch", "cpu"])
def backend(request):
    if request.param == "cpu" and cpu_backend.obstacle(torch.device("cpu"), torch.float32):
        pytest.skip("clipkit was installed without its compiled part")
    return request.param


def made(case, dtype, seed=0):
    return case.make(dtype, torch.Generator().manual_seed(seed))


@every_case
def test_float64_equals_the_definition(case):
    inputs, constants = made(case, torch.float64)
    ours = values_and_gradients(case.ours, inputs, constants, backend="torch")
    for mine, want in zip(ours, exact(case, inputs, constants), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-11, atol=1e-11)


@every_case
def test_gradients_are_derivatives(case):
    inputs, constants = made(case, torch.float64)
    leaves = [value.detach().requires_grad_() for value in inputs]
    torch.autograd.gradcheck(lambda *values: case.ours(*values, *constants, backend="torch"), leaves, fast_mode=True)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errs_no_more_than_plain_torch_in_the_same_dtype(case, dtype, backend):
    for mine, allowed in errors(case.name, dtype, backend):
        assert mine <= allowed


@every_case
def test_strides_do_not_show(case, backend):
    inputs, constants = made(case, torch.float32)
    scattered = [value.unsqueeze(-1).expand(*value.shape, 2).contiguous()[..., 0] for value in inputs]
    turned = [value.transpose(0, -2).contiguous().transpose(0, -2) if value.dim() > 2 else value for value in inputs]
    want = values_and_gradients(case.ours, [value.contiguous() for value in inputs], constants, backend=backend)
    for given in (inputs, scattered, turned):
        ours = values_and_gradients(case.ours, given, constants, backend=backend)
        for mine, other in zip(ours, want, strict=True):
            # torch's own sigmoid of scattered numbers is not to the bit that of neighbours
            torch.testing.assert_close(mine, other, rtol=2e-6, atol=1e-5)


@every_case
def test_a_broadcast_gradient_will_do(case, backend):
    """What `.sum().backward()` sends has no memory of its own, and strides of zero."""
    inputs, constants = made(case, torch.float32)
    ours, want = (
        torch.autograd.grad(sum(r.sum() for r in results), leaves)
        for leaves in [[value.detach().requires_grad_() for value in inputs]]
        for results in (case.ours(*leaves, *constants, backend=backend), case.plain(*leaves, *constants))
    )
    for mine, other in zip(ours, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5)


@every_case
def test_an_empty_batch_has_empty_results_and_zero_gradients(case, backend):
    inputs, constants = made(case, torch.float32)
    batch = inputs[0].shape[0]
    empty = [value[:0] if value.shape[0] == batch and value.dim() > 1 else value for value in inputs]
    none = [c[:0] if c is not None and c.dtype == torch.int64 else c for c in constants]
    for result, like in zip(
        values_and_gradients(case.ours, empty, none, backend=backend),
        values_and_gradients(case.plain, empty, none),
        strict=True,
    ):
        assert result.shape == like.shape
        assert not result.any()


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 5000])
def test_two_runs_and_any_number_of_threads_give_the_same_bits(backend, rows):
    generator = torch.Generator().manual_seed(0)
    gate, value, branch = (torch.randn(rows, 40, generator=generator) for _ in range(3))
    weight, bias = torch.randn(2, 40, generator=generator).unbind(0)

    def everything(gate, value, branch, weight, bias):
        normed = fused.swiglu_norm(gate, value, weight, bias, EPS, backend=backend)
        both = fused.add_norm(normed, branch, weight, bias, EPS, backend=backend)
        return (*both, fused.add_post_norm(both[0], branch, weight, bias, EPS, backend=backend))

    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3) if backend == "cpu" else (1, 1):
            torch.set_num_threads(threads)
            runs.append(values_and_gradients(everything, [gate, value, branch, weight, bias], []))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        # Weight and bias serve three norms here, whose gradients autograd adds up.
        assert all(torch.equal(mine, first) for mine, first in zip(run, runs[0], strict=True))


@every_case
def test_the_compiler_sees_no_break_and_the_numbers_stay(case, backend):
    inputs, constants = made(case, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager")
    ours = values_and_gradients(compiled, inputs, constants, backend=backend)
    eager = values_and_gradients(case.ours, inputs, constants, backend=backend)
    for mine, other in zip(ours, eager, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=2e-5)


def operators_compiled(case, backend):
    """The clipkit operators in what torch.compile hands to its backend."""
    seen = []

    def spy(module, _):
        targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
        seen.extend(str(target) for target in targets if "clipkit" in str(target))
        return module

    inputs, constants = made(case, torch.float32)
    torch._dynamo.reset()
    torch.compile(case.ours, fullgraph=True, backend=spy)(*inputs, *constants, backend=backend)
    return seen


@every_case
def test_inductor_is_shown_the_formula_of_plain_torch_and_an_operator_of_all_else(case, backend):
    assert bool(operators_compiled(case, backend)) == (backend == "cpu")


@every_case
def test_the_registration_of_the_operators_holds(case, backend):
    """Schema, fake kernels and autograd registration, by torch's own checker; of the gradients' operators too."""
    inputs, constants = made(case, torch.float32)
    with Operators() as called:
        values_and_gradients(case.ours, inputs, constants, backend=backend)
    assert len({operator for operator, _ in called.calls}) == (1 if "rotate" in case.name else 2)
    for operator, arguments in called.calls:
        copies = tuple(value.detach().clone() if isinstance(value, torch.Tensor) else value for value in arguments)
        checks = ("test_schema", "test_faketensor")
        if "gradients" not in operator.name():
            copies[0].requires_grad_()
            copies[1].requires_grad_()
            checks += ("test_autograd_registration",)
        torch.library.opcheck(operator, copies, test_utils=checks)


@every_case
def test_autocast_leaves_results_and_gradients_as_they_are(case, backend):
    inputs, constants = made(case, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = values_and_gradients(case.ours, inputs, constants, backend=backend)
    without = values_and_gradients(case.ours, inputs, constants, backend=backend)
    assert all(torch.equal(mine, other) for mine, other in zip(within, without, strict=True))


def test_large_batches_are_computed_in_pieces_that_do_not_show():
    """Plain torch passes 16-bit rows through fp32 a piece at a time."""
    generator = torch.Generator().manual_seed(0)
    gate, value, branch = (torch.randn(9000, 64, generator=generator).bfloat16() for _ in range(3))
    weight, bias = torch.ones(64), torch.zeros(64)
    halves = [slice(0, 4000), slice(4000, 9000)]

    def ours(gate, value, branch):
        normed = fused.swiglu_norm(gate, value, weight, bias, EPS, backend="torch")
        return (*fused.add_norm(normed, branch, weight, bias, EPS, backend="torch"),)

    whole = ours(gate, value, branch)
    parts = [ours(gate[half], value[half], branch[half]) for half in halves]
    for mine, split in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(mine, torch.cat(split))
