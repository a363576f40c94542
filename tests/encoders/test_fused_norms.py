# SPDX-License-Identifier: Apache-2.0
"""What the fused norms must do: padding that does not show, statistics that survive, dtypes of the residual stream."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clipkit.encoders.fused import add_norm, add_post_norm, swiglu_norm
from clipkit.engine import cpu_backend

EPS = 1e-6


@pytest.fixture(params=["torch", "cpu"])
def backend(request):
    if request.param == "cpu" and cpu_backend.obstacle(torch.device("cpu"), torch.float32):
        pytest.skip("clipkit was installed without its compiled part")
    return request.param


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def swiglu_and_gradients(gate, value, weight, bias, incoming, backend):
    leaves = [tensor.detach().requires_grad_() for tensor in (gate, value, weight, bias)]
    out = swiglu_norm(*leaves, EPS, backend=backend)
    return [out, *torch.autograd.grad(out, leaves, incoming)]


@pytest.mark.parametrize("beside", [0.0, float("nan")], ids=["zeros", "NaN"])
def test_eva02_l_padded_equals_unpadded(backend, beside):
    """2730 in 2752, whatever lies in the columns beyond: statistics over 2730."""
    hidden, padded = 2730, 2752
    gate, value, incoming = (randn(5, hidden, seed=seed) for seed in range(3))
    weight, bias = randn(hidden, seed=3), randn(hidden, seed=4)
    plain = swiglu_and_gradients(gate, value, weight, bias, incoming, backend)
    wide = [F.pad(tensor, (0, padded - hidden), value=beside) for tensor in (gate, value, incoming)]
    ours = swiglu_and_gradients(*wide[:2], weight, bias, wide[2], backend)
    for mine, want in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine[..., :hidden], want, rtol=1e-6, atol=1e-6)
    for mine in ours[:3]:
        assert not mine[:, hidden:].any()


def test_a_large_mean_leaves_the_variance(backend):
    """1e4 + noise of 1: sums of squares in fp32 would leave no digit of it."""
    branch = 1e4 + randn(6, 300)
    ones, zeros = torch.ones(300), torch.zeros(300)
    total, normed = add_norm(torch.zeros_like(branch), branch, ones, zeros, EPS, backend=backend)
    assert torch.equal(total, branch)
    want = F.layer_norm(branch.double(), (300,), eps=EPS)
    torch.testing.assert_close(normed.double(), want, rtol=0, atol=2e-3)
    post = add_post_norm(torch.zeros_like(branch), branch, ones, zeros, EPS, backend=backend)
    torch.testing.assert_close(post.double(), want, rtol=0, atol=2e-3)


def test_constant_rows_come_out_as_the_bias(backend):
    rows = torch.full((3, 40), 2.5)
    weight, bias = randn(40), randn(40, seed=1)
    _, normed = add_norm(rows, rows, weight, bias, EPS, backend=backend)
    assert torch.equal(normed, bias.expand(3, 40))


@pytest.mark.parametrize("gate", [-1e4, -90.0, -20.0, 0.0, 20.0, 90.0, 1e4])
def test_gates_at_the_ends_of_the_exponential(backend, gate):
    """silu is 0 far below and the gate far above; no NaN on the way, neither forward nor backward."""
    gates = torch.full((2, 24), gate) + torch.linspace(-1, 1, 24)
    value, incoming = randn(2, 24), randn(2, 24, seed=1)
    weight, bias = torch.ones(24), torch.zeros(24)
    ours = swiglu_and_gradients(gates, value, weight, bias, incoming, backend)
    leaves = [tensor.double().requires_grad_() for tensor in (gates, value, weight, bias)]
    out = F.layer_norm(F.silu(leaves[0]) * leaves[1], (24,), *leaves[2:], EPS)
    want = [out, *torch.autograd.grad(out, leaves, incoming.double())]
    for mine, exact in zip(ours, want, strict=True):
        torch.testing.assert_close(
            mine.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.detach().abs().max()) + 1e-30
        )


def test_a_nan_stays_in_its_row(backend):
    gate = randn(70, 16)
    gate[66, 3] = torch.nan
    out = swiglu_norm(gate, randn(70, 16, seed=1), torch.ones(16), torch.zeros(16), EPS, backend=backend)
    assert out.isnan().any(1).nonzero().flatten().tolist() == [66]
    assert out[66].isnan().all()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_a_wide_residual_stream_stays_wide(backend, low):
    """fp32 beside a branch of 16 bit: the sum is exact in fp32, what the next Linear reads is 16 bit."""
    x, branch = randn(9, 64).requires_grad_(), randn(9, 64, seed=1, dtype=low).requires_grad_()
    weight, bias = torch.ones(64), torch.zeros(64)
    total, normed = add_norm(x, branch, weight, bias, EPS, backend=backend)
    assert (total.dtype, normed.dtype) == (torch.float32, low)
    assert torch.equal(total, x + branch)
    assert add_post_norm(x, branch, weight, bias, EPS, backend=backend).dtype == torch.float32
    gradients = torch.autograd.grad(total.sum() + normed.float().square().sum(), (x, branch))
    assert [gradient.dtype for gradient in gradients] == [torch.float32, low]


def test_the_sum_that_is_normalised_is_the_rounded_one(backend):
    """A bf16 stream holds what it holds: 256 + 0.5 is 256, and its norm is that of zeros."""
    x, branch = torch.full((1, 32), 256.0).bfloat16(), torch.linspace(0, 0.5, 32).bfloat16().view(1, 32)
    _, normed = add_norm(x, branch, torch.ones(32), torch.zeros(32), EPS, backend=backend)
    assert not normed.any()


def test_two_numbers_a_row_are_kept(backend):
    """The backward pass of swiglu_norm keeps gate, value, weight and fp32 statistics, and nothing that is as large."""
    gate, value = (randn(50, 64, seed=s, dtype=torch.bfloat16).requires_grad_() for s in (0, 1))
    weight, bias = torch.ones(64, requires_grad=True), torch.zeros(64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        swiglu_norm(gate, value, weight, bias, EPS, backend=backend)
    inputs = {tensor.data_ptr() for tensor in (gate, value, weight)}
    others = [tensor for tensor in kept if tensor.data_ptr() not in inputs]
    assert [(tensor.shape, tensor.dtype) for tensor in others] == [((50,), torch.float32)] * 2
