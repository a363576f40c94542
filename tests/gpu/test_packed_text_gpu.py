# SPDX-License-Identifier: Apache-2.0
"""Attention kernels on a card lose no accuracy beside torch's, and packing waits for the card at most once."""

import warnings

import pytest
import torch

from clipkit.encoders.attention import DENSE, PACKED
from clipkit.encoders.attention.dense import torch_attention
from tests.encoders.naive import padded_tokens, text_features, tiny_model

LENGTHS = [2, 24, 7, 7, 1, 13, 24, 2, 9, 3, 23] * 8
TOKENS = padded_tokens(LENGTHS, 24)
# heads of 16: flash kernels want a multiple of 8
WIDTH = {"text.width": 32}


def skip_unless_served(table, name, dtype):
    kernel = next(kernel for kernel in table.kernels if kernel.name == name)
    obstacle = kernel.obstacle(torch.device("cuda"), dtype, 16)
    if obstacle:
        pytest.skip(obstacle)


def features_and_gradients(model, tokens, weights):
    features = model.encode_text(tokens)
    parameters = list(model.transformer.parameters())
    return [features, *torch.autograd.grad((features * weights.to(features)).sum(), parameters)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", [kernel.name for kernel in PACKED.kernels if kernel.name != "groups"])
def test_variable_length_kernels_err_no_more_than_dense_attention(monkeypatch, backend, dtype):
    skip_unless_served(PACKED, backend, dtype)
    model = tiny_model(**WIDTH)
    weights = torch.randn(len(LENGTHS), 16)
    exact = features_and_gradients(model.to(dtype).double(), TOKENS, weights)
    on_card, tokens = model.to("cuda", dtype), TOKENS.cuda()
    results = {}
    for name in (backend, "groups"):
        monkeypatch.setenv(PACKED.variable, name)
        results[name] = features_and_gradients(on_card, tokens, weights)
    for want, ours, dense in zip(exact, results[backend], results["groups"], strict=True):
        error, allowed = ((got.cpu().double() - want).norm() for got in (ours, dense))
        assert error <= 2 * allowed + 1e-3 * want.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [kernel.name for kernel in DENSE.kernels if kernel.name != "torch"])
@pytest.mark.parametrize("queries", [1, 50])
def test_dense_kernels_err_no_more_than_torch(kernel, dtype, queries):
    skip_unless_served(DENSE, kernel, dtype)
    leaves = [torch.randn(4, n, 3, 64, dtype=dtype, device="cuda", requires_grad=True) for n in (queries, 50, 50)]
    weights = torch.randn(4, queries, 3, 64, dtype=dtype, device="cuda")

    def results(attend, inputs):
        out = attend(*inputs)
        return [out, *torch.autograd.grad((out * weights.to(out)).sum(), inputs)]

    exact = results(torch_attention, [leaf.detach().double().requires_grad_() for leaf in leaves])
    load = next(entry.load for entry in DENSE.kernels if entry.name == kernel)
    for want, ours, theirs in zip(exact, results(load(), leaves), results(torch_attention, leaves), strict=True):
        error, allowed = ((got.double() - want).norm() for got in (ours, theirs))
        assert error <= 2 * allowed + 1e-3 * want.norm()


def test_full_precision_on_a_card_equals_the_padded_computation():
    model = tiny_model(**WIDTH).cuda()
    tokens = TOKENS.cuda()
    expected = text_features(tiny_model(**WIDTH), TOKENS)
    torch.testing.assert_close(model.encode_text(tokens).cpu(), expected, rtol=1e-11, atol=1e-11)


def test_packing_waits_once_and_packed_text_never():
    model = tiny_model(torch.bfloat16, **WIDTH).cuda()
    tokens = TOKENS.cuda()
    packed = model.pack(TOKENS).to("cuda")
    model.encode_text(tokens)
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            model.encode_text(tokens)
        torch.cuda.set_sync_debug_mode("error")
        model.encode_text(packed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in waits if "synchroniz" in str(w.message)]) == 1
