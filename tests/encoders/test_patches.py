# SPDX-License-Identifier: Apache-2.0
"""Patch dropout: exact counts, uniform without replacement, replayed with the generator; only kept patches embedded."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from clipkit.encoders.patches import embed_patches, kept_patches, sample_patches
from tests.encoders.naive import tiny_model

CPU = torch.device("cpu")
PIXELS = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("patches", "dropout", "kept"),
    [
        (196, 0.5, 98),
        (256, 0.5, 128),
        (576, 0.5, 288),
        (196, 0.75, 49),
        (256, 0.3, 179),
        (100, 0.9, 9),
        (10, 0.9, 1),
        (49, 0.5, 24),
        (16, 0.99, 1),
        (5, 0.2, 4),
    ],
)
def test_kept_patches_are_distinct_and_as_many_as_promised(patches, dropout, kept):
    assert kept_patches(patches, dropout) == kept
    sample = sample_patches(7, patches, dropout, CPU)
    assert (sample.shape, sample.dtype) == ((7, kept), torch.int64)
    assert all(len(set(row.tolist())) == kept for row in sample)
    assert sample.min() >= 0
    assert sample.max() < patches


def test_every_patch_and_every_pair_is_kept_equally_often_and_pictures_draw_apart():
    """Inclusion k/N and pair inclusion k(k-1)/(N(N-1)) over 20,000 pictures, within five standard deviations; and of
    neighbouring pictures, that both keep a patch (k/N)^2.
    """
    number, keep, pictures = 12, 5, 20_000
    torch.manual_seed(0)
    sample = sample_patches(pictures, number, 1 - keep / number, CPU)
    assert sample.shape[1] == keep
    kept = torch.zeros(pictures, number).scatter_(1, sample, 1.0)
    pairs = kept.T @ kept / pictures
    neighbours = kept[::2].T @ kept[1::2] / (pictures // 2)
    for found, wanted in (
        (pairs.diagonal(), keep / number),
        (pairs[~torch.eye(number, dtype=torch.bool)], keep * (keep - 1) / (number * (number - 1))),
        (neighbours, (keep / number) ** 2),
    ):
        draws = pictures if found is not neighbours else pictures // 2
        assert (found - wanted).abs().max() < 5 * (wanted * (1 - wanted) / draws) ** 0.5


def test_the_choice_is_the_generators():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = (sample_patches(4, 196, 0.5, CPU) for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(sample_patches(4, 196, 0.5, CPU), first)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_embedding_equals_the_convolution_and_picking(bias, height, width, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pixels = torch.randn(3, 3, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(6, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(6, dtype=torch.float64, requires_grad=True) if bias else None
    positions = torch.randn(height * width // 16, 6, dtype=torch.float64, requires_grad=True)
    whole = F.conv2d(pixels, weight, shift, stride=4).flatten(2).transpose(1, 2) + positions
    torch.testing.assert_close(embed_patches(pixels, weight, shift, positions), whole, rtol=0, atol=1e-12)
    kept = sample_patches(3, len(positions), 0.4, CPU)
    found = embed_patches(pixels, weight, shift, positions, kept)
    wanted = whole[torch.arange(3).unsqueeze(1), kept]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    leaves = [leaf for leaf in (weight, shift, positions) if leaf is not None]
    factors = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad((found * factors).sum(), leaves),
        torch.autograd.grad((wanted * factors).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_embedding_has_its_dtype_and_accuracy(dtype):
    pixels, weight, positions = torch.randn(2, 3, 8, 8), torch.randn(6, 3, 4, 4) / 7, torch.randn(4, 6)
    kept = torch.tensor([[3, 1], [0, 2]])
    wanted = embed_patches(pixels, weight, None, positions, kept)
    with torch.autocast("cpu", dtype=dtype):
        found = embed_patches(pixels, weight, None, positions, kept)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=8 * torch.finfo(dtype).eps)


class _Recorder(TorchFunctionMode):
    """Largest tensor that any operation made with the pixels' dtype."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64 and result._base is None:
            self.numbers = max(self.numbers, result.numel())
        return result


def test_dropped_pixels_are_never_copied():
    pixels, weight = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    kept, positions = sample_patches(4, 16, 0.75, CPU), torch.zeros(16, 2, dtype=torch.float64)
    with _Recorder() as made:
        embed_patches(pixels, weight, None, positions, kept)
    assert made.numbers == pixels.numel() // 4


def _dropping(**overrides):
    return tiny_model(**{"vision.patch_dropout": 0.5, **overrides})


def test_the_class_token_is_first_and_every_patch_stays_in_evaluation_and_without_dropout():
    for model in (_dropping().eval(), _dropping(**{"vision.patch_dropout": 0.0}).train()):
        assert model.visual._tokens(PIXELS).shape == (3, 17, 32)
    visual = _dropping().train().visual
    tokens = visual._tokens(PIXELS)
    assert tokens.shape == (3, 9, 32)
    first = visual.class_embedding + visual.positional_embedding[0]
    assert torch.equal(tokens[:, 0], first.expand(3, -1))


def test_checkpointed_and_compiled_blocks_see_the_same_patches():
    """Gradients too: recomputed and compiled blocks get the tokens that were chosen, and choose nothing themselves."""
    wanted = None
    for compiled in (False, True):
        for recompute in (False, True):
            model = _dropping().train()
            model.set_grad_checkpointing(recompute)
            for block in model.visual.block_list() if compiled else ():
                block.compile(backend="aot_eager", fullgraph=True)
            torch.manual_seed(5)
            model.encode_image(PIXELS).square().sum().backward()
            found = [parameter.grad for parameter in model.visual.parameters()]
            wanted = wanted or found
            for ours, first in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, first, rtol=0, atol=1e-12)


def test_a_tower_that_drops_patches_compiles_whole():
    model = _dropping().train()
    compiled = torch.compile(model.encode_image, backend="eager", fullgraph=True)
    torch.manual_seed(5)
    wanted = model.encode_image(PIXELS)
    torch.manual_seed(5)
    torch.testing.assert_close(compiled(PIXELS), wanted, rtol=0, atol=1e-12)
