# SPDX-License-Identifier: Apache-2.0
"""Named models, their configurations and what create_model promises."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import yaml

import clipkit
from clipkit.encoders import CLIP, CLIPConfig, create_model, get_config, list_models
from tests.encoders.naive import padded_tokens, tiny_model

SMALL = ["vit-tiny-32px", "conv-tiny-32px", "eva-tiny-32px"]
RESNET = "resnet-tiny-64px"  # batch statistics: more about it in test_resnet.py


def pictures(model: CLIP, count: int) -> torch.Tensor:
    size = model.config.vision.image_size
    return torch.randn(count, 3, size, size)


@pytest.mark.parametrize("name", list_models())
def test_every_named_model_is_made_without_memory_and_from_its_plain_configuration(name):
    with torch.device("meta"):
        model = create_model(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.logit_scale.shape == ()
    for dump, load in ((json.dumps, json.loads), (yaml.safe_dump, yaml.safe_load)):
        assert CLIPConfig.from_dict(load(dump(model.config.to_dict()))) == model.config == get_config(name)


def test_the_names_are_public_and_a_slash_is_read_as_a_dash():
    assert {"RN50", "ViT-B-32", "ViT-B-16", "ViT-L-14", "vit-tiny-32px", "vit-small-64px", "conv-tiny-32px"} <= set(
        clipkit.list_models()
    )
    assert get_config("ViT-B/32") == get_config("ViT-B-32")


@pytest.mark.parametrize("name", [*SMALL, RESNET])
def test_forward_gives_unit_features_and_the_multiplier(name):
    model = create_model(name, init_logit_scale=math.log(10), init_logit_bias=-10.0)
    tokens = padded_tokens([3, 77, 12], 77, vocab=model.config.text.vocab_size)
    pixels = pictures(model, 3)
    outputs = model(pixels, tokens)
    assert list(outputs) == ["image_features", "text_features", "logit_scale", "logit_bias"]
    for kind in ("image_features", "text_features"):
        assert outputs[kind].shape == (3, model.config.embed_dim)
        torch.testing.assert_close(outputs[kind].norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(outputs["logit_scale"], torch.tensor(10.0))
    assert outputs["logit_bias"].item() == -10.0
    assert list(model(tokens=tokens)) == ["text_features", "logit_scale", "logit_bias"]
    assert "logit_bias" not in create_model(name)(pixels)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit-tiny-32px", {}),
        ("vit-tiny-32px", {"vision.patch_dropout": 0.5}),
        ("conv-tiny-32px", {}),
        ("eva-tiny-32px", {"vision.patch_dropout": 0.5}),
    ],
    ids=["vit", "vit with patch dropout", "conv", "eva with patch dropout"],
)
def test_an_empty_batch_gives_empty_features_and_a_zero_gradient_everywhere(name, overrides):
    model = create_model(name, **overrides).train()
    outputs = model(torch.zeros(0, 3, 32, 32), torch.zeros(0, 77, dtype=torch.int64))
    (outputs["image_features"].sum() + outputs["text_features"].sum() + 0 * outputs["logit_scale"]).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert not parameter.grad.any(), parameter_name


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit-tiny-32px", {}),
        ("vit-tiny-32px", {"vision.patch_dropout": 0.5}),
        ("conv-tiny-32px", {}),
        ("eva-tiny-32px", {"vision.patch_dropout": 0.5}),
    ],
    ids=["vit", "vit with patch dropout", "conv", "eva with patch dropout"],
)
def test_recomputing_blocks_changes_no_gradient(name, overrides):
    model = create_model(name, **overrides).double().train()
    pixels = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    tokens = padded_tokens([5, 9, 30, 9], 77, vocab=model.config.text.vocab_size)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(3)
        image, text, scale = model(pixels, tokens).values()
        loss = torch.nn.functional.cross_entropy(scale * image @ text.T, torch.arange(4))
        return list(torch.autograd.grad(loss, list(model.parameters())))

    kept = gradients()
    saved: list[int] = []
    model.set_grad_checkpointing(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        again = gradients()
    with_recompute = sum(saved)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    saved.clear()
    model.set_grad_checkpointing(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        gradients()
    assert with_recompute < 0.7 * sum(saved)


@pytest.mark.parametrize("name", [*SMALL, RESNET])
def test_blocks_are_disjoint_and_hold_most_of_the_towers(name):
    model = create_model(name)
    inside = [id(p) for block in model.blocks() for p in block.parameters()]
    assert len(inside) == len(set(inside))
    towers = [p for n, p in model.named_parameters() if "embed" not in n]
    assert sum(p.numel() for p in towers if id(p) in set(inside)) > 0.9 * sum(p.numel() for p in towers)


@pytest.mark.parametrize("name", SMALL)
def test_blocks_compile_one_by_one_with_the_same_result(name):
    model = create_model(name).eval()
    tokens = padded_tokens([5, 9, 30], 77, vocab=model.config.text.vocab_size)
    pixels = pictures(model, 3)
    expected = model(pixels, tokens)
    compiled = copy.deepcopy(model)
    for block in compiled.blocks():
        block.compile(backend="eager")
    for ours, theirs in zip(compiled(pixels, tokens).values(), expected.values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_after_to_empty_are_those_of_a_fresh_model():
    with torch.device("meta"):
        model = create_model("vit-tiny-32px", init_logit_bias=-10.0)
    model.to_empty(device="cpu")
    torch.manual_seed(7)
    model.init_weights()
    torch.manual_seed(7)
    fresh = create_model("vit-tiny-32px", init_logit_bias=-10.0)
    for (name, ours), theirs in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_dtype_is_honoured_and_the_temperature_stays_float32():
    model = create_model("vit-tiny-32px", dtype=torch.bfloat16, init_logit_bias=-10.0)
    kept = {"logit_scale", "logit_bias"}
    assert {n for n, p in model.named_parameters() if p.dtype == torch.float32} == kept
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-6)
    outputs = model(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16), padded_tokens([4, 6], 77))
    assert outputs["image_features"].dtype == outputs["text_features"].dtype == torch.bfloat16
    assert create_model("vit-tiny-32px", dtype=torch.float64).logit_scale.dtype == torch.float64
    assert create_model("conv-tiny-32px", device="meta").visual.proj.is_meta
    with pytest.raises(TypeError, match=r"dtype: got torch\.int8"):
        create_model("vit-tiny-32px", dtype=torch.int8)


@pytest.mark.parametrize("name", SMALL)
def test_autocast_stays_close_to_full_precision(name):
    model = create_model(name)
    tokens = padded_tokens([5, 9, 30], 77, vocab=model.config.text.vocab_size)
    pixels = pictures(model, 3)
    full = model(pixels, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(pixels, tokens)
    for kind in ("image_features", "text_features"):
        cosine = (full[kind] * mixed[kind].float()).sum(-1)
        assert cosine.min() > 0.999


def test_overrides_are_dotted_or_flat():
    config = create_model("vit-tiny-32px", device="meta", patch_dropout=0.5, **{"text.layers": 2}).config
    assert (config.vision.patch_dropout, config.text.layers, config.vision.layers) == (0.5, 2, 6)
    assert len(create_model("conv-tiny-32px", device="meta", widths=[32, 64], depths=[1, 1]).visual.layers) == 3


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("ViT-B-23", {}, "name: got 'ViT-B-23'.*did you mean ViT-B-32"),
        ("vit-tiny-32px", {"patch_drop": 0.5}, "'patch_drop'.*did you mean vision.patch_dropout"),
        ("conv-tiny-32px", {"vision.patch_dropout": 0.5}, "'vision.patch_dropout'; want a field of the model"),
        ("vit-tiny-32px", {"layers": 3}, "'layers'.*write vision.layers or text.layers"),
        ("vit-tiny-32px", {"patch_dropout": 1.0}, r"vision.patch_dropout: got 1.0; want a share in \[0, 1\)"),
        ("vit-tiny-32px", {"image_size": 30}, "vision.image_size: got 30; want a multiple of patch_size = 4"),
        ("vit-tiny-32px", {"vision.layers": 0}, "vision.layers: got 0; want a whole number >= 1"),
        ("vit-tiny-32px", {"text.heads": 5}, "text.width: got 128; want a multiple of heads = 5"),
        ("vit-tiny-32px", {"vision.activation": "swish"}, "vision.activation: got 'swish'"),
        ("conv-tiny-32px", {"depths": [1]}, "vision.depths: got 1 depths for 3 widths"),
        ("conv-tiny-32px", {"vision.image_size": 36}, "vision.image_size: got 36; want a multiple of total stride = 8"),
        ("conv-tiny-32px", {"kernel_size": 4}, "vision.kernel_size: got 4; want an odd number"),
        ("conv-tiny-32px", {"stem_kernel": 3}, "vision.stem_kernel: got 3 with stride 2"),
    ],
)
def test_a_wrong_name_or_field_raises_and_names_the_nearest(name, overrides, said):
    with pytest.raises(ValueError, match=said):
        create_model(name, device="meta", **overrides)


def test_an_unknown_configuration_key_raises():
    plain = tiny_model().config.to_dict()
    plain["vision"]["depth"] = 3
    with pytest.raises(ValueError, match="vision: got unknown key 'depth'"):
        CLIPConfig.from_dict(plain)
    with pytest.raises(ValueError, match=r"vision\.kind: got 'swin'"):
        CLIPConfig.from_dict({"embed_dim": 8, "vision": {"kind": "swin"}})


def test_a_model_is_rebuilt_from_its_configuration_and_state():
    model = tiny_model()
    again = CLIP(CLIPConfig.from_dict(model.config.to_dict())).double()
    again.load_state_dict(model.state_dict())
    tokens = padded_tokens([4, 20], 24)
    assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
