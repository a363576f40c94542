# SPDX-License-Identifier: Apache-2.0
"""EVA-CLIP's image tower: published sizes and angles, equal to the obvious computation, nothing kept between passes."""

from __future__ import annotations

import math

import pytest
import torch

from clipkit.encoders import create_model, get_config
from clipkit.encoders.eva import SwiGLU
from clipkit.encoders.patches import sample_patches
from clipkit.encoders.rope import rotation_tables
from tests.encoders.eva_models import FORMS, eva_features, small_eva
from tests.encoders.naive import padded_tokens

CPU = torch.device("cpu")
PIXELS = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

# Parameters of the published models: image tower and all.
PUBLISHED = {
    "EVA01-g-14": (1_012_588_928, 1_136_435_841),
    "EVA01-g-14-plus": (1_012_588_928, 1_366_621_569),
    "EVA02-B-16": (86_263_040, 149_691_137),
    "EVA02-L-14": (304_105_152, 427_755_457),
    "EVA02-L-14-336": (304_432_832, 428_083_137),
    "EVA02-E-14": (4_350_556_928, 4_704_589_569),
    "EVA02-E-14-plus": (4_350_556_928, 5_044_889_089),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_have_exactly_their_parameters(name):
    with torch.device("meta"):
        model = create_model(name)
    counts = (sum(p.numel() for p in part.parameters()) for part in (model.visual, model))
    assert tuple(counts) == PUBLISHED[name]


def test_the_publishers_names_are_read_too():
    assert get_config("EVA02-CLIP-L-14-336") == get_config("EVA02-L-14-336")
    assert get_config("EVA01-CLIP-g-14-plus") == get_config("EVA01-g-14-plus")


@pytest.mark.parametrize("form", FORMS)
def test_features_and_gradients_equal_the_obvious_computation(form):
    model = small_eva(form)
    torch.testing.assert_close(model.encode_image(PIXELS), eva_features(model, PIXELS), rtol=1e-11, atol=1e-11)
    parameters = list(model.visual.parameters())
    weights = torch.randn(3, 16, dtype=torch.float64)
    ours = torch.autograd.grad((model.encode_image(PIXELS) * weights).sum(), parameters)
    theirs = torch.autograd.grad((eva_features(model, PIXELS) * weights).sum(), parameters)
    for (name, _), mine, expected in zip(model.visual.named_parameters(), ours, theirs, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-11 * scale + 1e-12, msg=name)


@pytest.mark.parametrize("form", ["EVA-02", "E"])
@pytest.mark.parametrize("dropout", [0.3, 0.5, 0.95])
def test_patch_dropout_turns_the_kept_patches_by_their_own_places(form, dropout):
    model = small_eva(form, patch_dropout=dropout).train()
    torch.manual_seed(5)
    features = model.encode_image(PIXELS)
    torch.manual_seed(5)
    kept = sample_patches(3, 16, dropout, PIXELS.device)
    torch.testing.assert_close(features, eva_features(model, PIXELS, kept), rtol=1e-11, atol=1e-11)
    shuffled = kept.flip(1)
    torch.testing.assert_close(eva_features(model, PIXELS, shuffled), features, rtol=1e-11, atol=1e-11)


def test_angles_of_the_published_models():
    cosines, sines = (t.view(14, 14, 32) for t in rotation_tables(14, 16, 64, CPU))
    angles = torch.atan2(sines, cosines)[1, 2]
    expected = {0: 1.14285714, 1: 0.64267580, 16: 2.28571429, 17: 1.2853516}
    for pair, angle in expected.items():
        assert angles[pair].item() == pytest.approx(angle, rel=1e-6)
    frequencies = 10000.0 ** (-torch.arange(16) / 16)
    assert frequencies[1].item() == pytest.approx(0.5623413)
    assert frequencies[-1].item() == pytest.approx(1.7782794e-4)
    rows = rotation_tables(16, 16, 64, CPU)[1].view(16, 16, 32)[:, 0, :16]
    torch.testing.assert_close(torch.asin(rows[1]), frequencies.float(), rtol=1e-5, atol=0)


def test_a_finer_grid_shares_the_angles_of_the_coarse_one():
    coarse, fine = rotation_tables(16, 16, 64, CPU), rotation_tables(24, 16, 64, CPU)
    for one, other in zip(coarse, fine, strict=True):
        assert torch.equal(one.view(16, 16, 32)[2, 4], other.view(24, 24, 32)[3, 6])
    assert [t.shape for t in rotation_tables(24, 16, 64, CPU)] == [(576, 32)] * 2
    cosines, sines = (t.view(16, 16, 32)[1, 2] for t in coarse)
    # e0 + e32 of a head of 64 channels: pair 0 by the row, pair 16 by the column
    found = [cosines[0], sines[0], cosines[16], sines[16]]
    for value, expected in zip(found, [0.54030231, 0.84147098, -0.41614684, 0.90929743], strict=True):
        assert value.item() == pytest.approx(expected, rel=1e-6)


def test_tables_stay_fp32_in_a_model_of_16_bit_and_out_of_its_state_dict():
    model = small_eva(dtype=torch.bfloat16)
    rotation = model.visual._rotation(None, model.visual.pos_embed)
    assert rotation.cosines.dtype == torch.float32
    assert not [name for name in model.state_dict() if "rope" in name]


def test_a_hidden_width_of_2730_is_computed_in_2752_columns_and_kept_in_2730():
    torch.manual_seed(0)
    mlp = SwiGLU(48, 2730, 1e-6).double()
    assert mlp.w1.weight.shape == (2730, 48)
    x = torch.randn(5, 48, dtype=torch.float64, requires_grad=True)
    assert mlp._widened(x, mlp.w1).shape == (5, 2752)
    padded = mlp(x)
    plain_gradients = torch.autograd.grad(padded.sum(), [x, *mlp.parameters()], retain_graph=True)
    mlp.spare = 0
    unpadded = mlp(x)
    torch.testing.assert_close(padded, unpadded, rtol=1e-12, atol=1e-12)
    others = torch.autograd.grad(unpadded.sum(), [x, *mlp.parameters()])
    for one, other in zip(plain_gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_inner_norm_forgets_the_values_scale():
    model = small_eva("EVA-02", **{"vision.norm_eps": 1e-12, "vision.layers": 1})
    attention = model.visual.blocks[0].attn
    before = model.encode_image(PIXELS)
    with torch.no_grad():
        attention.v_proj.weight *= 7.0
        attention.v_bias *= 7.0
    torch.testing.assert_close(model.encode_image(PIXELS), before, rtol=1e-11, atol=1e-11)


def test_a_key_bias_would_change_nothing_and_there_is_none():
    for form in FORMS:
        assert not [name for name, _ in small_eva(form).named_parameters() if "k_bias" in name or "k_proj.bias" in name]
    # without rotation, which would turn the bias at each place by another angle
    attention = small_eva("EVA-01").visual.blocks[0].attn
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    before = attention(x, None, False)
    project = attention._projections

    def with_key_bias(asking, tokens):
        query, key, value = project(asking, tokens)
        return query, key + torch.linspace(-3, 3, 32, dtype=torch.float64), value

    attention._projections = with_key_bias
    torch.testing.assert_close(attention(x, None, False), before, rtol=1e-10, atol=1e-10)


def test_models_with_and_without_rotation_live_side_by_side():
    turning, plain = small_eva("EVA-02"), small_eva("EVA-01")
    expected = turning.encode_image(PIXELS), plain.encode_image(PIXELS)
    small_eva("E").encode_image(PIXELS)
    assert torch.equal(turning.encode_image(PIXELS), expected[0])
    assert torch.equal(plain.encode_image(PIXELS), expected[1])


def test_two_passes_before_two_backwards_are_recomputed_with_their_own_patches():
    other = torch.randn_like(PIXELS)

    def gradients(recompute: bool) -> list[torch.Tensor]:
        model = small_eva(patch_dropout=0.5).train()
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(11)
        first, second = model.encode_image(PIXELS).sum(), model.encode_image(other).square().sum()
        second.backward()
        first.backward()
        return [p.grad for p in model.visual.parameters()]

    for kept, again in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(kept, again)


def test_drop_path_leaves_whole_branches_out_and_is_unbiased():
    model = small_eva("EVA-01", drop_path=0.5, **{"vision.layers": 3}).train()
    blocks = model.visual.block_list()
    assert [block.drop_path for block in blocks] == [0.0, 0.25, 0.5]
    branch = torch.ones(4000, 2, 32, dtype=torch.float64)
    thinned = blocks[2]._thinned(branch)
    assert set(thinned.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(thinned, thinned[:, :1, :1].expand_as(thinned))  # whole samples
    assert abs(thinned.mean().item() - 1) < 5 * math.sqrt(1 / 4000)
    assert blocks[0]._thinned(branch) is branch
    model.eval()
    assert blocks[2]._thinned(branch) is branch
    torch.testing.assert_close(model.encode_image(PIXELS), eva_features(model, PIXELS), rtol=1e-11, atol=1e-11)


def test_norms_run_over_channels_where_tokens_are_as_many():
    """[2, 32, 32]: an axis chosen by its size could be the wrong one."""
    model = small_eva("EVA-02")
    x = torch.randn(2, 32, 32, dtype=torch.float64)
    normed = model.visual.norm(x)
    shift, scale = model.visual.norm.bias, model.visual.norm.weight
    back = (normed - shift) / scale
    torch.testing.assert_close(back.mean(-1), torch.zeros(2, 32, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(back.var(-1, unbiased=False), torch.ones(2, 32, dtype=torch.float64), rtol=1e-4, atol=0)


def test_starting_values_are_the_published_ones():
    torch.manual_seed(0)
    model = create_model("eva-tiny-32px", **{"vision.width": 256, "vision.head_width": 64})
    tower = model.visual
    assert tower.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert tower.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert tower.head.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    for number, block in enumerate(tower.block_list(), start=1):
        for layer in (block.attn.q_proj, block.mlp.w1):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for layer in (block.attn.proj, block.mlp.w3):
            assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)
        for bias in (block.attn.q_bias, block.attn.v_bias, block.attn.proj.bias, block.mlp.w1.bias, block.mlp.w3.bias):
            assert not bias.any()
    features = model(torch.randn(2, 3, 32, 32))["image_features"]
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"vision.drop_path": 1.0}, r"vision.drop_path: got 1.0; want a share in \[0, 1\)"),
        ({"vision.post_norm": True, "vision.drop_path": 0.1}, "vision.drop_path: got 0.1 with post_norm"),
        ({"vision.head_width": 2}, "vision.head_width: got 2; want a multiple of two axes of pairs = 4"),
        ({"vision.hidden": 0}, "vision.hidden: got 0"),
        ({"vision.patch_dropout": -0.1}, "vision.patch_dropout: got -0.1"),
    ],
)
def test_wrong_fields_say_what_is_wanted(overrides, said):
    with pytest.raises(ValueError, match=said):
        create_model("eva-tiny-32px", device="meta", **overrides)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_autocast_stays_close(dtype):
    torch.manual_seed(0)
    model = create_model("eva-tiny-32px")
    torch.nn.init.trunc_normal_(model.visual.head.weight, std=0.02)
    pixels, tokens = torch.randn(3, 3, 32, 32), padded_tokens([5, 9, 30], 77, vocab=49408)
    full = model(pixels, tokens)
    with torch.autocast("cpu", dtype=dtype):
        mixed = model(pixels, tokens)
    for kind in ("image_features", "text_features"):
        assert (full[kind] * mixed[kind].float()).sum(-1).min() > 0.999
