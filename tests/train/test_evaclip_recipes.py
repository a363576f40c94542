# SPDX-License-Identifier: Apache-2.0
"""The recipes of EVA-CLIP's models have the numbers they were launched with, all of them, and build."""

from __future__ import annotations

import math

import pytest
import torch

from clipkit.encoders import create_model
from clipkit.optim import learning_rate
from clipkit.recipes import create_recipe
from clipkit.train.config import Config, load_config
from clipkit.train.optimizers import build_optimizer

# From the commands in the README of the authors' code, and its defaults where a command is silent.
NAMES = ("g-14-plus", "b-16", "l-14", "l-14-336", "e-14", "e-14-plus")
LAUNCHED = {
    "model": (
        *("EVA01-g-14-plus", "EVA02-B-16", "EVA02-L-14"),
        *("EVA02-L-14-336", "EVA02-E-14", "EVA02-E-14-plus"),
    ),
    "parameters": (1_366_621_569, 149_691_137, 427_755_457, 428_083_137, 4_704_589_569, 5_044_889_089),
    "batch": (1024 * 112, 2048 * 64, 1024 * 128, 480 * 128, 800 * 144, 1000 * 144),
    "steps": (35_200, 64_000, 32_000, 32_800, 35_200, 28_000),
    "epochs": (100, 200, 100, 50, 100, 100),  # of 40 million pairs, rounded up to whole batches
    "image lr": (4e-4, 2e-4, 4e-4, 4e-4, 4e-4, 4e-4),
    "text lr": (4e-5, 2e-5, 4e-5, 4e-5, 4e-5, 4e-5),
    "image decay": (0.85, 0.75, 0.85, 0.75, 0.9, 0.9),
    "text decay": (0.75, 0.75, 0.75, 0.65, 0.75, 0.75),
    "patch dropout": (0.5, 0.0, 0.0, 0.0, 0.5, 0.5),
    "precision": ("fp16", "fp16", "fp16", "fp16", "fp16", "bf16"),
    "image": (
        *("EVA01_g_psz14", "EVA02_B_psz14to16", "EVA02_L_psz14"),
        *("EVA02_CLIP_L_psz14", "EVA02_E_psz14", "EVA02_E_psz14"),
    ),
    "text": (
        *("open_clip-ViT-H-14", "openai-ViT-B-16", "openai-ViT-L-14"),
        *("EVA02_CLIP_L_psz14", "open_clip-ViT-H-14", "open_clip-ViT-bigG-14"),
    ),
}
SEEN = {  # pairs
    "g-14-plus": 4_037_017_600,
    "b-16": 8_388_608_000,
    "l-14": 4_194_304_000,
    "l-14-336": 2_015_232_000,
    "e-14": 4_055_040_000,
    "e-14-plus": 4_032_000_000,
}


def launched(config: Config) -> dict[str, object]:
    """The fields of LAUNCHED as a configuration has them."""
    optim, train, init = config.optim, config.train, config.model.init
    model = create_model(config.model.name, device="meta", **config.model.overrides)
    assert init.image is not None
    assert init.text is not None
    return {
        "model": config.model.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch": train.global_batch,
        "steps": train.steps,
        "epochs": (train.steps or 0) / train.save_every,
        "image lr": optim.image.lr,
        "text lr": optim.text.lr,
        "image decay": optim.image.layer_decay,
        "text decay": optim.text.layer_decay,
        "patch dropout": model.visual.patch_dropout,
        "precision": train.precision,
        "image": init.image.split("/")[-1].removesuffix(".pt"),
        "text": init.text.split("/")[-1].removesuffix(".pt"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_launched_ones(name: str) -> None:
    config = load_config(f"evaclip-{name}.yaml")
    assert launched(config) == {field: values[NAMES.index(name)] for field, values in LAUNCHED.items()}
    optim, train, augment = config.optim, config.train, config.data.augment
    assert (optim.name, optim.lamb.trust, optim.betas, optim.eps) == ("lamb", "nvlamb", (0.9, 0.999), 1e-8)
    assert (optim.lr, optim.lr_scale, optim.weight_decay, optim.grad_clip) == (5e-4, 5e-4, 0.05, 5.0)
    assert (optim.image.weight_decay, optim.text.weight_decay) == (0.05, 0.05)
    assert set(optim.no_decay) == {"cls_token", "pos_embed", "positional_embedding"}
    assert (optim.schedule.name, optim.schedule.warmup_steps, optim.schedule.lr_min) == ("cosine", 2000, 0.0)
    assert optim.scale_schedule.name == "shared"
    assert (train.seed, train.parallel, train.accumulation, config.data.workers) == (4096, "zero1", 1, 8)
    assert (augment.crop_scale, augment.flip, augment.colour) == ((0.9, 1.0), 0.0, 0.0)
    assert (config.recipe.name, config.loss.name, config.loss.label_smoothing) == ("contrastive", "clip", 0.0)
    assert config.model.grad_checkpointing
    create_recipe(config)


@pytest.mark.parametrize("name", NAMES)
def test_length_is_the_launched_one(name: str) -> None:
    """T26 of the facts: steps and samples as the launched code counts them."""
    train = load_config(f"evaclip-{name}.yaml").train
    assert (train.steps or 0) * train.global_batch == SEEN[name]
    pairs_an_epoch = train.save_every * train.global_batch
    assert 40_000_000 <= pairs_an_epoch < 1.05 * 40_000_000


@pytest.mark.parametrize("name", NAMES)
def test_what_starts_anew_is_what_was_skipped(name: str) -> None:
    init = load_config(f"evaclip-{name}.yaml").model.init
    if name == "l-14-336":
        assert init.skip == (), "it goes on from the whole of the model at 224 pixels"
    else:
        assert set(init.skip or ()) == {
            "visual.head",
            "head",
            "lm_head",
            "mask_token",
            "text_projection",
            "logit_scale",
        }


def test_rates_of_the_base_model_are_the_launched_ones() -> None:
    """The schedule's known values at some steps, and layer decay's at some depths."""
    config = load_config("evaclip-b-16.yaml")
    optim = config.optim

    def rate(step: int) -> float:
        return learning_rate(
            step, total_steps=64_000, peak=optim.image.lr or 0, warmup_steps=optim.schedule.warmup_steps, lr_min=0.0
        )

    assert [rate(step) for step in (0, 999, 1999, 2000, 33_000)] == pytest.approx([1e-7, 1e-4, 2e-4, 2e-4, 1e-4])
    model = create_model(config.model.name, device="meta")
    optimizer = build_optimizer(optim, model, model.blocks())
    groups = {name: group for group in optimizer.param_groups for name in group["names"]}
    scales = {
        "visual.patch_embed.proj.weight": 0.75**13,
        "visual.blocks.0.attn.q_proj.weight": 0.75**12,
        "visual.blocks.11.mlp.w3.weight": 0.75,
        "visual.head.weight": 1.0,
        "transformer.resblocks.11.mlp.c_fc.weight": 0.75,
        "logit_scale": 1.0,
    }
    for parameter, scale in scales.items():
        assert groups[parameter]["layer_scale"] == pytest.approx(scale), parameter
    assert [
        groups[name]["weight_decay"] for name in ("visual.pos_embed", "visual.cls_token", "positional_embedding")
    ] == ([0.0] * 3)
    assert groups["token_embedding.weight"]["weight_decay"] == 0.05
    assert groups["logit_scale"]["peak_lr"] == 5e-4
    assert groups["visual.head.weight"]["peak_lr"] == 2e-4
    assert groups["text_projection"]["peak_lr"] == 2e-5


@pytest.mark.parametrize("name", [*NAMES, "emoji"])
def test_numbers_are_numbers(name: str) -> None:
    """YAML reads 1e-8 as a text."""
    optim = load_config(f"evaclip-{name}.yaml").optim
    for number in (optim.lr, optim.eps, optim.lr_scale, optim.image.layer_decay):
        assert isinstance(number, float)


def test_the_small_recipes_are_of_one_tower() -> None:
    """What is pre-trained fits what starts from it, and leaves the rest of it alone."""
    first, second = load_config("eva-mim-emoji.yaml"), load_config("evaclip-emoji.yaml")
    assert second.model.init.image == first.output.dir
    towers = [create_model(one.model.name, device="meta", **one.model.overrides).visual for one in (first, second)]
    shapes = [{name: value.shape for name, value in tower.state_dict().items()} for tower in towers]
    assert shapes[0] == shapes[1]
    assert (first.recipe.name, second.recipe.name) == ("mim", "contrastive")
    assert (second.optim.name, second.model.overrides["vision.patch_dropout"]) == ("lamb", 0.5)
    for one in (first, second):
        create_recipe(one)
    assert create_model(second.model.name).logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert torch.equal(create_model(second.model.name).logit_scale, torch.tensor(math.log(1 / 0.07)))
