# SPDX-License-Identifier: Apache-2.0
"""The same weights give the same features here and in open_clip, timm and transformers, and travel both ways."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipkit.encoders import (
    CLIPConfig,
    create_model,
    export_state_dict,
    get_config,
    load_checkpoint,
    open_clip_config,
)
from tests.encoders.naive import padded_tokens, tiny_model

LENGTHS = [8, 24, 3, 17]


def peer_of(open_clip, config: CLIPConfig, custom_text: bool = False):
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    return kind(**open_clip_config(config))


def assert_same_features(model, peer, tokens, tolerance):
    model.eval()
    peer.eval()
    size = model.config.vision.image_size
    pixels = torch.randn(len(tokens), 3, size, size, dtype=model.visual.proj.dtype)
    with torch.no_grad():
        for ours, theirs in (
            (model.encode_image(pixels), peer.encode_image(pixels)),
            (model.encode_text(tokens), peer.encode_text(tokens)),
            (model.encode_image(pixels, normalize=True), peer.encode_image(pixels, normalize=True)),
        ):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(model(pixels, tokens).values(), peer(pixels, tokens), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


NAMED = ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"]


@pytest.mark.parametrize("name", [*NAMED, "ViT-B-32-quickgelu", "RN50-quickgelu"])
def test_named_models_have_open_clips_parameters(open_clip, name):
    with torch.device("meta"):
        ours, theirs = create_model(name), open_clip.CLIP(**open_clip.get_model_config(name))
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}


def test_vit_b_32_has_open_clips_features(open_clip):
    peer = open_clip.create_model("ViT-B-32")
    model = create_model("ViT-B-32")
    report = load_checkpoint(model, peer.state_dict())
    assert report.layout == "open_clip CLIP"
    assert len(report.loaded) == len(peer.state_dict())
    tokens = padded_tokens([9, 77], 77, vocab=49408)
    assert_same_features(model, peer, tokens, 1e-5)


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"vision.activation": "quick_gelu", "text.activation": "quick_gelu"},
        {"vision.pool": "avg", "vision.pre_norm": False, "vision.norm_eps": 1e-6, "text.norm_eps": 1e-6},
        {"init_logit_scale": 2.0, "init_logit_bias": -10.0},
    ],
    ids=["plain", "quick_gelu", "avg", "siglip"],
)
def test_weights_travel_both_ways_exactly(open_clip, overrides, custom_text, tmp_path):
    model = tiny_model(**overrides)
    peer = peer_of(open_clip, model.config, custom_text).double()
    save_file(
        export_state_dict(model, "open_clip_custom_text" if custom_text else "open_clip"), tmp_path / "m.safetensors"
    )
    peer.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
    tokens = padded_tokens(LENGTHS, 24)
    assert_same_features(model, peer, tokens, 1e-12)

    torch.save(
        {"epoch": 3, "name": "x", "state_dict": {f"module.{n}": p for n, p in peer.state_dict().items()}},
        tmp_path / "m.pt",
    )
    back = tiny_model(seed=1, **overrides)
    load_checkpoint(back, tmp_path / "m.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))


def test_training_gradients_equal_open_clips(open_clip):
    model = tiny_model()
    peer = peer_of(open_clip, model.config).double()
    peer.load_state_dict(export_state_dict(model))
    tokens, pixels = padded_tokens(LENGTHS, 24), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for image, text, scale in (tuple(model(pixels, tokens).values()), peer(pixels, tokens)):
        torch.nn.functional.cross_entropy(scale * image @ text.T, torch.arange(4)).backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-12, msg=name)


def test_resized_positions_equal_open_clips(open_clip):
    model = tiny_model()
    big = model.config.replace({"vision.image_size": 24})
    peer = peer_of(open_clip, big)
    state = dict(export_state_dict(model.float()))
    from open_clip.model import resize_pos_embed

    theirs = dict(state)
    resize_pos_embed(theirs, peer)
    ours = tiny_model(torch.float32, seed=1, **{"vision.image_size": 24})
    report = load_checkpoint(ours, state, resize_positions=True)
    assert report.resized == ("visual.positional_embedding: (17, 32) -> (37, 32)",)
    torch.testing.assert_close(ours.visual.positional_embedding.data, theirs["visual.positional_embedding"])


@pytest.mark.parametrize("pre_norm", [True, False])
def test_timms_vision_transformer_has_the_same_features(timm_vision_transformer, pre_norm):
    """timm's plain ViT has a bias in the patch embedding and no norm before the blocks; its CLIP one is the reverse."""
    peer = timm_vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=16, pre_norm=pre_norm
    )
    peer.head = torch.nn.Linear(32, 16, bias=False)
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    peer = peer.double().eval()
    model = tiny_model(**{"vision.pre_norm": pre_norm, "vision.norm_eps": peer.norm.eps})
    untouched = model.token_embedding.weight.clone()
    report = load_checkpoint(model, peer.state_dict())
    assert report.layout == "timm image tower"
    assert "token_embedding.weight" in report.untouched
    assert torch.equal(model.token_embedding.weight, untouched)
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model.encode_image(pixels), peer(pixels), rtol=1e-11, atol=1e-12)


def test_open_clip_with_a_timm_tower_loads(open_clip):
    name = "vit_tiny_patch16_224"
    text = get_config("vit-tiny-32px").replace({"text.vocab_size": 600, "text.layers": 1})
    cfg = {
        **open_clip_config(text),
        "vision_cfg": {"timm_model_name": name, "timm_pool": "token", "timm_proj": "linear", "image_size": 224},
    }
    peer = open_clip.CustomTextCLIP(**cfg).double()
    vision = {"image_size": 224, "patch_size": 16, "width": 192, "layers": 12, "head_width": 64}
    overrides = {f"vision.{key}": value for key, value in vision.items()}
    model = create_model(
        "vit-tiny-32px",
        pretrained=peer.state_dict(),
        dtype=torch.float64,
        **{"text.vocab_size": 600, "text.layers": 1, "vision.pre_norm": False, "vision.norm_eps": 1e-6, **overrides},
    )
    assert_same_features(model, peer, padded_tokens([5, 30], 77), 1e-9)


def test_starting_values_have_open_clips_spread(open_clip):
    torch.manual_seed(0)
    config = tiny_model().config.replace({"vision.width": 256, "vision.head_width": 64, "text.width": 256})
    torch.manual_seed(0)
    from clipkit.encoders import CLIP

    ours, theirs = CLIP(config), dict(peer_of(open_clip, config).named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.dim() > 1:
            ratio = (parameter.std() / theirs[name].std()).item()
            assert 0.93 < ratio < 1.07, f"{name}: {ratio}"
        elif "bias" not in name and parameter.dim() == 0:
            assert torch.equal(parameter, theirs[name]), name


def test_transformers_clip_model_has_the_same_features(transformers):
    model = tiny_model(**{"vision.activation": "quick_gelu", "text.activation": "quick_gelu"}).eval()
    sizes = {"num_attention_heads": 2, "bos_token_id": 598, "eos_token_id": 599, "pad_token_id": 0}
    text = {**sizes, "vocab_size": 600, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 3}
    vision = {"num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        projection_dim=16,
        text_config={**text, "max_position_embeddings": 24},
        vision_config={**vision, "image_size": 16, "patch_size": 4},
    )
    peer = transformers.CLIPModel(config).double().eval()
    peer.load_state_dict(export_state_dict(model, "transformers"), strict=True)
    tokens, pixels = padded_tokens(LENGTHS, 24), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    outputs = peer(input_ids=tokens, pixel_values=pixels)
    ours = model(pixels, tokens)
    torch.testing.assert_close(ours["image_features"], outputs.image_embeds, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours["text_features"], outputs.text_embeds, rtol=1e-11, atol=1e-12)
    back = tiny_model(seed=1)
    load_checkpoint(back, peer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
