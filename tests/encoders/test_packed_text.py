# SPDX-License-Identifier: Apache-2.0
"""Packing leaves padding out and nothing else: same features, same gradients, for every mix of lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.encoders import pack
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


def test_a_row_of_nothing_but_padding_is_its_first_token():
    """As open_clip reads it: the largest id of zeros is the first one."""
    model = tiny_model()
    tokens = padded_tokens([5, 3, 9], CONTEXT)
    tokens[1] = 0
    torch.testing.assert_close(model.encode_text(tokens), text_features(model, tokens), rtol=1e-12, atol=1e-12)


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
