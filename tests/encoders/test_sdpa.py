# SPDX-License-Identifier: Apache-2.0
"""Attention with a wide backward: torch's values, gradients that are nearer to float64 than torch's own."""

import pytest
import torch
from torch.nn import functional as F

from clipkit.encoders.attention.sdpa import scaled_dot_product_attention

HALF = (torch.bfloat16, torch.float16)


def tensors(dtype, queries=13, keys=13):
    """Query, key and value as a block makes them: strided views of one projection."""
    torch.manual_seed(0)
    projected = torch.randn(3, keys, 3, 4, 16).to(dtype)
    query, key, value = (part.transpose(1, 2).detach() for part in projected.unbind(2))
    return [query[:, :, :queries].requires_grad_(), key.requires_grad_(), value.requires_grad_()]


def value_and_gradients(attention, inputs, **options):
    out = attention(*inputs, **options)
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, towards.to(out.dtype))]


def exact(inputs, dtype, **options):
    wide = [each.detach().double().requires_grad_() for each in inputs]
    out = F.scaled_dot_product_attention(*wide, **options)
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype).double()
    return [out.detach(), *torch.autograd.grad(out, wide, towards)]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("queries, is_causal", [(13, False), (13, True), (1, False)])
def test_gradients_are_nearer_to_float64_than_torch_s(dtype, queries, is_causal):
    inputs = tensors(dtype, queries)
    ours = value_and_gradients(scaled_dot_product_attention, inputs, is_causal=is_causal)
    theirs = value_and_gradients(F.scaled_dot_product_attention, inputs, is_causal=is_causal)
    want = exact(inputs, dtype, is_causal=is_causal)
    assert torch.equal(ours[0], theirs[0])
    for got, peer, right in zip(ours[1:], theirs[1:], want[1:], strict=True):
        assert got.dtype == dtype
        error, peer_error = ((each.double() - right).norm() for each in (got, peer))
        # half a unit in the last place of the answer is what rounding it costs, torch's kernel or not
        assert error <= max(peer_error, torch.finfo(dtype).eps / 2 * right.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wider_dtypes_are_torch_s_own(dtype):
    inputs = tensors(dtype)
    for got, want in zip(
        value_and_gradients(scaled_dot_product_attention, inputs),
        value_and_gradients(F.scaled_dot_product_attention, inputs),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_nothing_is_kept_where_nobody_learns():
    inputs = [each.detach() for each in tensors(torch.bfloat16)]
    assert scaled_dot_product_attention(*inputs).grad_fn is None
    with torch.no_grad():
        assert scaled_dot_product_attention(*tensors(torch.bfloat16)).grad_fn is None


def test_frozen_inputs_and_empty_batches():
    query, key, value = tensors(torch.bfloat16)
    out = scaled_dot_product_attention(query.detach(), key.detach(), value)
    (gradient,) = torch.autograd.grad(out.sum(), [value])
    assert gradient.shape == value.shape
    empty = [each[:0] for each in (query, key, value)]
    assert scaled_dot_product_attention(*empty).shape == (0, 4, 13, 16)
