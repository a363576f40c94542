# SPDX-License-Identifier: Apache-2.0
"""EVA-CLIP's weights travel: the publishers' names, timm's modules, open_clip's whole models."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipkit.encoders import create_model, export_state_dict, load_checkpoint, load_towers, open_clip_config
from tests.encoders.eva_models import FORMS, small_eva
from tests.encoders.naive import padded_tokens

PIXELS = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
PUBLISHED = ["EVA01-g-14", "EVA01-g-14-plus", "EVA02-B-16", "EVA02-L-14", "EVA02-L-14-336", "EVA02-E-14"]


def timm_tower(timm_eva, config):
    """timm's tower of a small configuration."""
    tower = timm_eva.Eva(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.layers,
        num_heads=config.heads,
        num_classes=16,
        global_pool="token",
        qkv_fused=not config.sub_norm,
        mlp_ratio=config.hidden / config.width,
        swiglu_mlp=config.sub_norm,
        scale_mlp=config.sub_norm,
        scale_attn_inner=config.sub_norm,
        use_rot_pos_emb=config.rope,
        use_post_norm=config.post_norm,
        ref_feat_shape=(config.rope_grid, config.rope_grid) if config.rope else None,
    )
    for module in tower.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config.norm_eps
    return tower.double().eval()


@pytest.mark.parametrize("form", FORMS)
def test_timms_tower_has_the_same_features_and_gradients(timm_eva, form):
    model = small_eva(form)
    peer = timm_tower(timm_eva, model.config.vision)
    exported = {name: value for name, value in export_state_dict(model).items() if name.startswith("visual.trunk.")}
    peer.load_state_dict({name.removeprefix("visual.trunk."): value for name, value in exported.items()}, strict=True)
    theirs = peer(PIXELS)
    ours = model.encode_image(PIXELS)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    theirs.square().sum().backward()
    ours.square().sum().backward()
    gradients = copy.deepcopy(model)
    for into, parameter in zip(gradients.visual.parameters(), model.visual.parameters(), strict=True):
        into.data = parameter.grad
    named = export_state_dict(gradients)
    for name, parameter in peer.named_parameters():
        tolerance = 1e-6 * parameter.grad.abs().max().item() + 1e-9
        torch.testing.assert_close(named[f"visual.trunk.{name}"], parameter.grad, rtol=1e-5, atol=tolerance, msg=name)

    back = small_eva(form, seed=1)
    untouched = back.token_embedding.weight.clone()
    report = load_checkpoint(back, peer.state_dict())
    assert report.layout == "EVA image tower"
    assert not report.unexpected
    assert torch.equal(back.token_embedding.weight, untouched)
    for one, other in zip(model.visual.parameters(), back.visual.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_have_open_clips_names_and_shapes(open_clip, name):
    with torch.device("meta"):
        ours = create_model(name)
        theirs = open_clip.CustomTextCLIP(**_plain(open_clip.get_model_config(name)))
        same = open_clip.CustomTextCLIP(**_plain(open_clip_config(ours.config)))
    shapes = {n: tuple(p.shape) for n, p in export_state_dict(ours).items()}
    assert shapes == {n: tuple(p.shape) for n, p in theirs.state_dict().items()}
    assert shapes == {n: tuple(p.shape) for n, p in same.state_dict().items()}


def _plain(config: dict) -> dict:
    return {key: value for key, value in config.items() if key != "custom_text"}


def test_eva02_b_16_has_open_clips_features_and_loads_its_checkpoint(open_clip, tmp_path):
    torch.manual_seed(0)
    peer = open_clip.create_model("EVA02-B-16").eval()
    model = create_model("EVA02-B-16").eval()
    report = load_checkpoint(model, peer.state_dict())
    assert report.layout == "open_clip with an EVA image tower"
    assert (len(report.loaded), report.unexpected, report.missing) == (len(model.state_dict()), (), ())
    pixels, tokens = torch.randn(2, 3, 224, 224), padded_tokens([9, 77], 77, vocab=49408)
    with torch.no_grad():
        for ours, theirs in zip(model(pixels, tokens).values(), peer(pixels, tokens), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
    save_file({n: p.contiguous() for n, p in export_state_dict(model).items()}, tmp_path / "m.safetensors")
    peer.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)


@pytest.mark.parametrize("form", FORMS)
def test_the_publishers_layout_travels_both_ways_exactly(form, tmp_path):
    model = small_eva(form)
    exported = export_state_dict(model, "eva_clip")
    save_file({n: p.clone() for n, p in exported.items()}, tmp_path / "eva.safetensors")
    assert "text.transformer.resblocks.0.ln_1.weight" in exported
    back = small_eva(form, seed=1)
    report = load_checkpoint(back, tmp_path / "eva.safetensors")
    assert report.layout == "EVA-CLIP"
    assert not report.unexpected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))


def test_the_publishers_tables_are_written_for_the_tower_and_every_block():
    exported = export_state_dict(small_eva("EVA-02"), "eva_clip")
    tables = {name: value for name, value in exported.items() if "rope" in name}
    owners = ("visual.rope", "visual.blocks.0.attn.rope", "visual.blocks.1.attn.rope")
    assert sorted(tables) == sorted(f"{owner}.freqs_{kind}" for owner in owners for kind in ("cos", "sin"))
    cosines = tables["visual.rope.freqs_cos"]
    assert cosines.shape == (16, 16)
    assert torch.equal(cosines[:, 0::2], cosines[:, 1::2])
    assert not [name for name in export_state_dict(small_eva("EVA-01"), "eva_clip") if "rope" in name]


def test_our_own_layout_and_the_refused_ones():
    model = small_eva()
    back = small_eva(seed=1)
    assert load_checkpoint(back, export_state_dict(model, "clipkit")).layout == "clipkit"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"model: got a ResNet, an EVA tower"):
        export_state_dict(model, "transformers")
    with pytest.raises(ValueError, match="model: got a vit tower; want an EVA tower"):
        export_state_dict(create_model("vit-tiny-32px"), "eva_clip")
    with pytest.raises(ValueError, match="config: got an EVA tower of width 32, 2 layers and 16 pixels"):
        open_clip_config(model.config)


def test_a_pretrained_eva_tower_of_another_patch_size_and_a_clip_text_start_a_model():
    """What EVA02-CLIP-B-16 was started from: image modelling in patches of other pixels, and OpenAI's text tower."""
    source = small_eva("EVA-02", dtype=torch.float32, **{"vision.patch_size": 2, "vision.image_size": 8})
    exported = export_state_dict(source, "eva_clip")
    image = {n.removeprefix("visual."): p for n, p in exported.items() if n.startswith("visual.")}
    image |= {"mask_token": torch.zeros(1, 1, 32), "lm_head.weight": torch.zeros(9, 32), "lm_head.bias": torch.zeros(9)}
    text = export_state_dict(small_eva("EVA-01", dtype=torch.float32, seed=2), "clipkit")
    model = small_eva("EVA-02", dtype=torch.float32, seed=1, **{"vision.image_size": 24})
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_towers(model, image=image, text=text)
    assert sorted(report.image.resized) == ["visual.patch_embed.proj.weight", "visual.pos_embed"]
    kept = ("visual.head.weight", "visual.head.bias", "text_projection", "logit_scale")
    for name, value in model.state_dict().items():
        if name in kept:
            assert torch.equal(value, fresh[name]), name
        elif name.startswith("visual.") and "patch_embed.proj.weight" not in name and "pos_embed" not in name:
            assert torch.equal(value, image[name.removeprefix("visual.")]), name
        elif not name.startswith("visual."):
            assert torch.equal(value, text[name]), name
    assert {name for name in image if "rope" in name} <= set(report.image.unused)
