# SPDX-License-Identifier: Apache-2.0
"""Packing leaves padding out and nothing else: same features, same gradients, for every mix of lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from clipkit.encoders import attention, pack
from clipkit.encoders.transformer import TextLayout
from tests.encoders.naive import padded_tokens, text_features, tiny_model

MIXED = [2, 24, 7, 7, 1, 13, 24, 2, 9, 3, 23]
CONTEXT = 24


@pytest.mark.parametrize(
    "lengths", [MIXED, [24] * 5, [1, 1, 1], [5], list(range(1, 25))], ids=["mixed", "full", "empty", "one", "all"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_features_equal_the_padded_computation(lengths, dtype, tolerance):
    model = tiny_model(dtype)
    tokens = padded_tokens(lengths, CONTEXT)
    torch.testing.assert_close(model.encode_text(tokens), text_features(model, tokens), rtol=tolerance, atol=tolerance)


def test_gradients_equal_the_padded_computation():
    model = tiny_model()
    tokens = padded_tokens(MIXED, CONTEXT)
    weights = torch.randn(len(MIXED), 16, dtype=torch.float64)
    towers = [p for n, p in model.named_parameters() if not n.startswith(("visual.", "logit"))]
    packed = torch.autograd.grad((model.encode_text(tokens) * weights).sum(), towers)
    padded = torch.autograd.grad((text_features(model, tokens) * weights).sum(), towers)
    for ours, theirs in zip(packed, padded, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_order_of_the_batch_does_not_matter():
    model = tiny_model()
    tokens = padded_tokens(MIXED, CONTEXT)
    order = torch.randperm(len(MIXED))
    torch.testing.assert_close(model.encode_text(tokens)[order], model.encode_text(tokens[order]), rtol=0, atol=1e-13)


def test_a_caption_does_not_depend_on_its_neighbours():
    model = tiny_model()
    tokens = padded_tokens(MIXED, CONTEXT)
    alone = torch.cat([model.encode_text(row.unsqueeze(0)) for row in tokens])
    torch.testing.assert_close(model.encode_text(tokens), alone, rtol=0, atol=1e-13)


def test_what_follows_the_end_token_and_the_row_length_do_not_matter():
    model = tiny_model()
    tokens = padded_tokens([4, 9, 6], CONTEXT)
    expected = model.encode_text(tokens)
    assert torch.equal(model.encode_text(tokens[:, :9]), expected)
    tokens[:, 9:] = 7
    assert torch.equal(model.encode_text(tokens), expected)
    assert torch.equal(model.encode_text(tokens.int()), expected)


def test_the_first_end_token_counts():
    model = tiny_model()
    tokens = padded_tokens([6], CONTEXT)
    tokens[0, 2] = tokens.max()
    torch.testing.assert_close(model.encode_text(tokens), text_features(model, tokens), rtol=0, atol=1e-12)
    assert pack(tokens, vocab_size=600, context_length=CONTEXT).ids.tolist() == tokens[0, :3].tolist()


def test_no_captions_give_no_features_and_zero_gradients():
    model = tiny_model()
    features = model.encode_text(padded_tokens([], CONTEXT), normalize=True)
    assert features.shape == (0, 16)
    features.sum().backward()
    assert all(not p.grad.any() for p in model.transformer.parameters())


def test_packed_text_is_taken_as_it_is():
    model = tiny_model()
    tokens = padded_tokens(MIXED, CONTEXT)
    packed = model.pack(tokens)
    assert len(packed) == len(MIXED)
    assert torch.equal(model.encode_text(packed.to("cpu")), model.encode_text(tokens))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=20))
def test_packing_keeps_each_caption_whole_and_once(lengths):
    tokens = padded_tokens(lengths, CONTEXT, seed=len(lengths))
    packed = pack(tokens, vocab_size=600, context_length=CONTEXT)
    starts = packed.cu_seqlens.tolist()
    assert len(packed.ids) == starts[-1] == sum(lengths)
    assert [length for length, count in packed.groups for _ in range(count)] == sorted(lengths)
    for row, place, length in zip(tokens, packed.inverse.tolist(), lengths, strict=True):
        here = slice(starts[place], starts[place + 1])
        assert packed.ids[here].tolist() == row[:length].tolist()
        assert packed.positions[here].tolist() == list(range(length))
        assert packed.last[place] == here.stop - 1


def _one_caption_after_another(q, k, v, q_starts, k_starts, q_max, k_max, causal):
    """What a variable-length kernel promises."""
    out = []
    for i in range(len(q_starts) - 1):
        rows, keys = slice(q_starts[i], q_starts[i + 1]), slice(k_starts[i], k_starts[i + 1])
        assert rows.stop - rows.start <= q_max
        assert keys.stop - keys.start <= k_max
        parts = (t.transpose(0, 1) for t in (q[rows], k[keys], v[keys]))
        out.append(torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=causal).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("backend", ["torch", "flash_attn"])
def test_variable_length_kernels_are_called_as_they_want(monkeypatch, backend):
    model = tiny_model()
    tokens = padded_tokens(MIXED, CONTEXT)
    expected = model.encode_text(tokens)
    monkeypatch.setenv(attention.FORCE_VARIABLE, backend)
    monkeypatch.setattr(attention, f"_{backend}_varlen", lambda: _one_caption_after_another)
    torch.testing.assert_close(model.encode_text(tokens), expected, rtol=0, atol=1e-13)


def test_the_installed_torch_takes_our_varlen_arguments():
    pytest.importorskip("torch.nn.attention.varlen", reason="torch < 2.10 has no variable-length attention")
    with FakeTensorMode():
        qkv = [torch.empty(9, 2, 16, dtype=torch.bfloat16) for _ in range(3)]
        starts = torch.empty(3, dtype=torch.int32)
        for causal in (True, False):
            assert attention._torch_varlen()(*qkv, starts, starts, 5, 5, causal).shape == (9, 2, 16)


@pytest.mark.parametrize("pooled_only", [False, True])
def test_a_text_block_with_a_variable_length_kernel_has_no_graph_break(monkeypatch, pooled_only):
    pytest.importorskip("torch.nn.attention.varlen", reason="torch < 2.10 has no variable-length attention")
    monkeypatch.setenv(attention.FORCE_VARIABLE, "torch")
    model = tiny_model(torch.bfloat16)
    text = model.pack(padded_tokens(MIXED, CONTEXT)).to("meta")
    block = model.to("meta").transformer.blocks()[0]
    x = torch.empty(len(text.ids), 24, dtype=torch.bfloat16, device="meta")
    layout = TextLayout(text, attention.packed_attention(x.device, x.dtype, 16))
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert compiled(x, layout, pooled_only).shape == ((len(MIXED) if pooled_only else len(text.ids)), 24)


def test_backend_is_chosen_by_device_and_dtype_and_can_be_forced(monkeypatch):
    cpu = torch.device("cpu")
    assert attention.packed_backend(cpu, torch.bfloat16, 64) == "groups"
    assert attention.packed_backend(torch.device("cuda"), torch.float32, 64) == "groups"
    monkeypatch.setenv(attention.FORCE_VARIABLE, "flash_attn")
    assert attention.packed_backend(cpu, torch.float32, 64) == "flash_attn"
    monkeypatch.setenv(attention.FORCE_VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"CLIPKIT_PACKED_ATTENTION: got 'fast'; want torch or flash_attn or groups"):
        attention.packed_backend(cpu, torch.float32, 64)


@pytest.mark.parametrize(
    ("tokens", "error", "said"),
    [
        (torch.zeros(2, 24), TypeError, "torch.float32"),
        (torch.zeros(2, 24, dtype=torch.bool), TypeError, "torch.bool"),
        (torch.zeros(24, dtype=torch.int64), ValueError, r"shape \(24,\)"),
        (torch.zeros(2, 0, dtype=torch.int64), ValueError, r"shape \(2, 0\)"),
        (torch.zeros(2, 25, dtype=torch.int64), ValueError, "rows of 25 ids; want at most 24"),
        (torch.full((2, 24), 600), ValueError, r"an id 600; want ids in \[0, 600\)"),
        (torch.full((2, 24), -1), ValueError, "an id -1"),
    ],
)
def test_wrong_tokens_raise_and_say_what_is_wanted(tokens, error, said):
    with pytest.raises(error, match=f"tokens: got .*{said}"):
        tiny_model().encode_text(tokens)
