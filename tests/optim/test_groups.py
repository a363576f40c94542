# SPDX-License-Identifier: Apache-2.0
"""Per-tower rates, layer decay and exclusions from weight decay, parameter by parameter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from clipkit import create_model
from clipkit.optim import TowerOptions, hidden_matrices, parameter_groups
from clipkit.optim.layers import layer_scales, tower_of
from clipkit.train.config import OptimConfig, ScheduleConfig
from clipkit.train.rates import group_rate, main_rate

EVA_B16 = {"image": TowerOptions(2e-4, 0.05, 0.75), "text": TowerOptions(2e-5, 0.05, 0.75)}
EVA_NO_DECAY = ("cls_token", "pos_embed", "positional_embedding")


def eva_names(depth: int = 12, text_depth: int = 12) -> dict[str, tuple[int, ...]]:
    """Names and shapes as EVA02-CLIP-B-16 has them, with a width of 4 for 768 and for 512."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.cls_token": (1, 1, 4),
        "visual.pos_embed": (1, 5, 4),
        "visual.patch_embed.proj.weight": (4, 3, 2, 2),
        "visual.patch_embed.proj.bias": (4,),
    }
    for block in range(depth):
        prefix = f"visual.blocks.{block}"
        for part in ("norm1", "norm2", "attn.inner_attn_ln", "mlp.ffn_ln"):
            shapes |= {f"{prefix}.{part}.weight": (4,), f"{prefix}.{part}.bias": (4,)}
        shapes |= {f"{prefix}.attn.{part}_proj.weight": (4, 4) for part in "qkv"}
        shapes |= {f"{prefix}.attn.{part}_bias": (4,) for part in "qv"}
        for part in ("attn.proj", "mlp.w1", "mlp.w2", "mlp.w3"):
            shapes |= {f"{prefix}.{part}.weight": (4, 4), f"{prefix}.{part}.bias": (4,)}
    for part, shape in (("norm", (4,)), ("head", (4, 4))):
        shapes |= {f"visual.{part}.weight": shape, f"visual.{part}.bias": (4,)}
    shapes |= {"token_embedding.weight": (9, 4), "positional_embedding": (7, 4), "text_projection": (4, 4)}
    for block in range(text_depth):
        prefix = f"transformer.resblocks.{block}"
        shapes |= {f"{prefix}.attn.in_proj_weight": (12, 4), f"{prefix}.attn.in_proj_bias": (12,)}
        for part in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
            shapes |= {f"{prefix}.{part}.weight": (4, 4), f"{prefix}.{part}.bias": (4,)}
        for part in ("ln_1", "ln_2"):
            shapes |= {f"{prefix}.{part}.weight": (4,), f"{prefix}.{part}.bias": (4,)}
    return shapes | {"ln_final.weight": (4,), "ln_final.bias": (4,), "logit_scale": ()}


def eva_parameters() -> list[tuple[str, nn.Parameter]]:
    return [(name, nn.Parameter(torch.empty(shape))) for name, shape in eva_names().items()]


def published_layer(name: str, depth: int = 12) -> int:
    """The layer by the authors' rule, for the names of their towers."""
    first = ("patch_embed", "pos_embed", "cls_token", "mask_token", "conv1", "positional_embedding", "token_embedding")
    if any(part in name for part in first):
        return 0
    if "blocks." in name:
        return int(name.split("blocks.")[1].split(".")[0]) + 1
    return depth + 1


def published_decay(name: str, shape: tuple[int, ...]) -> float:
    undecayed = ("pos_embed", "cls_token", "positional_embedding", "logit_scale")
    vector = len(shape) <= 1 or name.endswith(".bias")
    return 0.0 if vector or any(part in name for part in undecayed) else 0.05


def test_every_parameter_of_eva02_has_the_published_rate_and_decay():
    groups = parameter_groups(
        eva_parameters(), lr=5e-4, weight_decay=0.05, towers=EVA_B16, no_decay=EVA_NO_DECAY, lr_scale=5e-4
    )
    found = {name: group for group in groups for name in group["names"]}
    for name, shape in eva_names().items():
        tower = {"visual": 2e-4, "logit_scale": 5e-4}.get(name.split(".")[0], 2e-5)
        scale = 1.0 if name == "logit_scale" else 0.75 ** (13 - published_layer(name))
        assert found[name]["peak_lr"] == tower, name
        assert found[name]["layer_scale"] == pytest.approx(scale, rel=1e-12), name
        assert found[name]["lr"] == pytest.approx(tower * scale, rel=1e-12), name
        assert found[name]["weight_decay"] == published_decay(name, shape), name
    # two towers of 14 layers, decayed or not, and the scale; layer 0 of the text tower has both kinds too
    assert len(groups) == 2 * 14 * 2 + 1


@pytest.mark.parametrize("layer, wanted", [(0, 0.0237573), (1, 0.0316764), (12, 0.75), (13, 1.0)])
def test_known_scales_of_b16(layer, wanted):
    scales = layer_scales(eva_names(), {"image": 0.75})
    names = [name for name in eva_names() if name.startswith("visual") and published_layer(name) == layer]
    assert names
    assert [scales[name] for name in names] == pytest.approx([wanted] * len(names), rel=1e-5)
    assert scales["token_embedding.weight"] == 1.0, "a tower without layer decay"


def test_each_tower_counts_its_own_blocks():
    scales = layer_scales(eva_names(depth=3, text_depth=5), {"image": 0.5, "text": 0.9})
    assert scales["visual.cls_token"] == 0.5**4
    assert scales["visual.blocks.2.mlp.w3.bias"] == 0.5
    assert scales["positional_embedding"] == 0.9**6
    assert scales["transformer.resblocks.4.ln_1.bias"] == 0.9
    last = ("visual.head.bias", "visual.norm.weight", "text_projection", "logit_scale")
    assert {scales[name] for name in last} == {1.0}


# What of ViT-B-32 is not inside a block: its layer, and whether the published lists decay it.
VIT_B_32 = {
    "visual.conv1.weight": (0, True),
    "visual.class_embedding": (0, False),
    "visual.positional_embedding": (0, False),
    "visual.ln_pre.weight": (0, False),
    "visual.ln_pre.bias": (0, False),
    "visual.ln_post.weight": (13, False),
    "visual.ln_post.bias": (13, False),
    "visual.proj": (13, True),
    "token_embedding.weight": (0, True),
    "positional_embedding": (0, False),
    "ln_final.weight": (13, False),
    "ln_final.bias": (13, False),
    "text_projection": (13, True),
}


@pytest.fixture(scope="module")
def vit():
    with torch.device("meta"):
        return create_model("ViT-B-32")


def test_every_parameter_of_vit_b_32_is_in_the_one_group_it_belongs_to(vit):
    towers = {"image": TowerOptions(2e-4, 0.05, 0.75), "text": TowerOptions(2e-5, 0.1, 0.65)}
    common = {"lr": 1.0, "weight_decay": 1.0, "lr_scale": 5e-4}
    groups = parameter_groups(vit.named_parameters(), **common, towers=towers, no_decay=["positional_embedding"])
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in vit.named_parameters())
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in vit.parameters()}
    for group in groups:
        for name in group["names"]:
            if name == "logit_scale":
                assert (group["group"], group["peak_lr"], group["layer_scale"]) == ("scale", 5e-4, 1.0)
                assert group["weight_decay"] == 0.0
                continue
            own = towers["image" if name.startswith("visual.") else "text"]
            if "resblocks" in name:
                layer = int(name.split("resblocks.")[1].split(".")[0]) + 1
                decayed = name.endswith("weight") and "ln_" not in name
            else:
                layer, decayed = VIT_B_32[name]
            assert group["peak_lr"] == own.lr, name
            assert group["layer_scale"] == pytest.approx(own.layer_decay ** (13 - layer)), name
            assert group["weight_decay"] == (own.weight_decay if decayed else 0.0), name
            assert group["group"] == ("decay" if decayed else "no_decay"), name


def test_without_options_the_groups_are_the_three_they_were(vit):
    groups = parameter_groups(vit.named_parameters(), lr=1.0, weight_decay=0.2)
    wanted = {
        "decay": [name for name, p in vit.named_parameters() if p.ndim >= 2],
        "no_decay": [name for name, p in vit.named_parameters() if p.ndim < 2 and name != "logit_scale"],
        "scale": ["logit_scale"],
    }
    assert [(group["group"], group["names"]) for group in groups] == list(wanted.items())
    default = parameter_groups(
        vit.named_parameters(), lr=1.0, weight_decay=0.2, towers=dict.fromkeys(("image", "text"), TowerOptions())
    )
    assert [group["names"] for group in default] == list(wanted.values())
    assert [group["lr"] for group in default] == [1.0, 1.0, 1.0]


def test_a_frozen_block_is_in_no_group_and_is_a_layer_still(vit):
    with torch.device("meta"):
        model = create_model("ViT-B-32")
    model.visual.transformer.resblocks[11].requires_grad_(False)
    groups = parameter_groups(
        model.named_parameters(), lr=1.0, weight_decay=0.2, towers={"image": TowerOptions(layer_decay=0.75)}
    )
    found = {name: group["layer_scale"] for group in groups for name in group["names"]}
    assert not any("visual.transformer.resblocks.11." in name for name in found)
    assert found["visual.conv1.weight"] == pytest.approx(0.75**13)


def test_hidden_matrices_learn_at_their_rate_times_the_towers_and_the_layers():
    model = create_model("vit-tiny-32px")
    towers = {"image": TowerOptions(lr=5e-4, layer_decay=0.5), "text": TowerOptions(weight_decay=0.3)}
    options = {"weight_decay": 0.1, "towers": towers, "hidden": hidden_matrices(model.blocks()), "lr_hidden": 0.02}
    groups = parameter_groups(model.named_parameters(), lr=1e-3, **options)
    found = {name: group for group in groups for name in group["names"]}
    last = found[f"visual.transformer.resblocks.{model.config.vision.layers - 1}.mlp.c_fc.weight"]
    assert (last["muon"], last["peak_lr"], last["lr"]) == (True, 0.01, 0.005)
    text = found["transformer.resblocks.0.mlp.c_fc.weight"]
    assert (text["lr"], text["weight_decay"]) == (0.02, 0.3)
    assert "muon" not in found["token_embedding.weight"]
    with pytest.raises(ValueError, match="lr: got 0"):
        parameter_groups(model.named_parameters(), lr=0.0, **options)


def test_what_is_of_neither_tower_has_the_common_options():
    module = nn.Module()
    module.visual, module.head = nn.Linear(2, 2), nn.Linear(2, 2)
    assert tower_of("head.weight") is None
    towers = {"image": TowerOptions(lr=0.1), "text": TowerOptions(lr=0.2)}
    groups = parameter_groups(module.named_parameters(), lr=1.0, weight_decay=0.0, towers=towers)
    assert {name: group["lr"] for group in groups for name in group["names"]} == {
        "visual.weight": 0.1,
        "visual.bias": 0.1,
        "head.weight": 1.0,
        "head.bias": 1.0,
    }


@pytest.mark.parametrize("name, tower", [("RN50", "image"), ("conv-tiny-32px", "image")])
def test_layer_decay_wants_blocks_to_decay_over(name, tower):
    with torch.device("meta"):
        model = create_model(name)
    options = {tower: TowerOptions(layer_decay=0.75)}
    with pytest.raises(ValueError, match=rf"{tower}\.layer_decay: got 0.75 for a tower without numbered blocks"):
        parameter_groups(model.named_parameters(), lr=1.0, weight_decay=0.1, towers=options)


def test_an_exclusion_that_names_nothing_is_refused(vit):
    with pytest.raises(ValueError, match=r"no_decay: got pos_embed; want parts of the names"):
        parameter_groups(vit.named_parameters(), lr=1.0, weight_decay=0.1, no_decay=["ln_final", "pos_embed"])


@pytest.mark.parametrize(
    "step, wanted", [(0, 1e-7), (999, 1e-4), (1999, 2e-4), (2000, 2e-4), (33000, 1e-4), (64000, 0.0)]
)
def test_the_schedule_of_eva02_b16_in_every_group(step, wanted):
    """Sun et al.'s launched run: 2000 steps of warm-up, a cosine to 0 at 64,000, each group its part of it."""
    settings = OptimConfig("lamb", schedule=ScheduleConfig("cosine", warmup_steps=2000))
    groups = parameter_groups(
        eva_parameters(), lr=5e-4, weight_decay=0.05, towers=EVA_B16, no_decay=EVA_NO_DECAY, lr_scale=5e-4
    )
    for group in groups:
        rate = wanted * group["layer_scale"] * group["peak_lr"] / 2e-4
        assert math.isclose(group_rate(group, step, settings, 64000), rate, rel_tol=1e-9, abs_tol=1e-15)


def test_the_floor_of_the_schedule_is_scaled_with_the_layer():
    """So that no group ends at a rate above its own peak."""
    settings = OptimConfig(schedule=ScheduleConfig("cosine", lr_min=1e-5))
    for group in parameter_groups(eva_parameters(), lr=5e-4, weight_decay=0.05, towers=EVA_B16):
        assert group_rate(group, 10, settings, 10) == pytest.approx(1e-5 * group["layer_scale"])


def test_the_rate_that_is_shown_is_the_image_towers_whatever_group_comes_first():
    schedule = ScheduleConfig("cosine", warmup_steps=2000)
    assert main_rate(999, OptimConfig(lr=5e-4, schedule=schedule), 64000) == 2.5e-4
    own = OptimConfig(lr=5e-4, image=EVA_B16["image"], text=EVA_B16["text"], schedule=schedule)
    assert main_rate(999, own, 64000) == 1e-4
