# SPDX-License-Identifier: Apache-2.0
"""The image towers: equal to the obvious computation; patch dropout computes the kept patches only."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipkit.encoders import create_model
from clipkit.encoders.patches import sample_patches
from tests.encoders.naive import image_features, tiny_model

PIXELS = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "relu"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_features_equal_the_obvious_computation(pool, activation, pre_norm):
    model = tiny_model(**{"vision.pool": pool, "vision.activation": activation, "vision.pre_norm": pre_norm})
    torch.testing.assert_close(model.encode_image(PIXELS), image_features(model, PIXELS), rtol=1e-12, atol=1e-12)


def test_gradients_equal_the_obvious_computation():
    model = tiny_model()
    parameters = list(model.visual.parameters())
    weights = torch.randn(3, 16, dtype=torch.float64)
    ours = torch.autograd.grad((model.encode_image(PIXELS) * weights).sum(), parameters)
    theirs = torch.autograd.grad((image_features(model, PIXELS) * weights).sum(), parameters)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize("dropout", [0.3, 0.5, 0.95])
def test_patch_dropout_equals_embedding_all_and_picking_the_kept(pool, dropout):
    model = tiny_model(**{"vision.patch_dropout": dropout, "vision.pool": pool}).train()
    torch.manual_seed(5)
    features = model.encode_image(PIXELS)
    torch.manual_seed(5)
    kept = sample_patches(3, 16, dropout, PIXELS.device)
    torch.testing.assert_close(features, image_features(model, PIXELS, kept), rtol=1e-12, atol=1e-12)


def test_patch_dropout_is_off_in_evaluation_and_replays_from_the_generator():
    model = tiny_model(**{"vision.patch_dropout": 0.5}).eval()
    torch.testing.assert_close(model.encode_image(PIXELS), image_features(model, PIXELS), rtol=1e-12, atol=1e-12)
    model.train()
    state = torch.get_rng_state()
    first, second = model.encode_image(PIXELS), model.encode_image(PIXELS)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(model.encode_image(PIXELS), first)


def test_patch_dropout_saves_the_embedding_of_dropped_patches_too():
    model = tiny_model(torch.float32, **{"vision.patch_dropout": 0.5}).visual
    pixels = PIXELS.float()

    def flops_of_embedding() -> int:
        with FlopCounterMode(display=False) as counter:
            model._tokens(pixels)
        return counter.get_total_flops()

    model.eval()
    whole = flops_of_embedding()
    model.train()
    assert whole == 3 * 16 * 2 * 48 * 32
    assert flops_of_embedding() == whole // 2


def test_the_last_block_computes_the_class_token_alone():
    pixels = PIXELS.float()
    flops = {}
    for layers in (1, 2, 3):
        model = tiny_model(torch.float32, **{"vision.layers": layers})
        with FlopCounterMode(display=False) as counter:
            model.encode_image(pixels)
        flops[layers] = counter.get_total_flops()
    width, tokens, count = 32, 17, 3
    every_token, one_token = count * tokens * 2 * width**2, count * 2 * width**2
    whole_block, last_block = flops[3] - flops[2], flops[1] - count * (16 * 2 * 48 * width + 2 * width * 16)
    # PyTorch counts the attention itself on some devices only: at most 4 * queries * keys * width
    assert 12 * every_token <= whole_block <= 12 * every_token + 4 * count * tokens**2 * width
    last = 2 * every_token + 10 * one_token
    assert last <= last_block <= last + 4 * count * tokens * width


@pytest.mark.parametrize("name", ["vit-tiny-32px", "conv-tiny-32px", "resnet-tiny-64px", "eva-tiny-32px"])
def test_vision_towers_have_no_graph_break(name):
    model = create_model(name).eval()
    size = model.config.vision.image_size
    pixels = torch.randn(2, 3, size, size)
    compiled = torch.compile(model.encode_image, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixels), model.encode_image(pixels))


@pytest.mark.parametrize("name", ["vit-tiny-32px", "conv-tiny-32px", "eva-tiny-32px"])
def test_a_picture_does_not_depend_on_its_neighbours(name):
    model = create_model(name).double()
    pixels = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    alone = torch.cat([model.encode_image(picture.unsqueeze(0)) for picture in pixels])
    torch.testing.assert_close(model.encode_image(pixels), alone, rtol=0, atol=1e-12)
    order = torch.randperm(5)
    torch.testing.assert_close(model.encode_image(pixels[order]), alone[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("pixels", "error", "said"),
    [
        (torch.zeros(2, 3, 32, 32), ValueError, r"shape \(2, 3, 32, 32\); want \[n, 3, 16, 16\]"),
        (torch.zeros(2, 1, 16, 16), ValueError, r"shape \(2, 1, 16, 16\)"),
        (torch.zeros(3, 16, 16), ValueError, r"shape \(3, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), TypeError, "torch.uint8; want normalised floats"),
        (torch.zeros(2, 3, 16, 16), TypeError, "torch.float32; want the model's dtype torch.float64"),
    ],
)
def test_wrong_pixels_raise_and_say_what_is_wanted(pixels, error, said):
    with pytest.raises(error, match=f"pixels: got {said}"):
        tiny_model().encode_image(pixels)
