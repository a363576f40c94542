# SPDX-License-Identifier: Apache-2.0
"""The recipes that carry a paper's name have its numbers, all of them, and build."""

from __future__ import annotations

import math

import pytest
import torch

from clipkit.encoders import create_model
from clipkit.optim import learning_rate
from clipkit.recipes import create_recipe
from clipkit.train.config import Config, load_config

# From the README and the defaults of the authors' code (efd89d5; DRRho's: 33d7364). Columns: FastCLIP v3, three sizes;
# FastCLIP as DRRho's baseline.
NAMES = ("fastclip-medium", "fastclip-large", "fastclip-xlarge", "drrho-fastclip")
PUBLISHED = {
    "model": ("RN50", "ViT-B-32", "ViT-B-16", "ViT-B-16"),
    "width": (1024, 512, 512, 512),
    "batch": (8 * 128, 8 * 256, 16 * 320, 8 * 640),
    "epochs": (37, 33, 30, 7),
    "lr": (1e-3, 4e-4, 2e-4, 3.125e-4),
    "lr_min": (0, 0, 4e-5, 0),
    "warmup": (10_000, 10_000, 13_200, 500),
    "decay": (0.1, 0.1, 0.2, 0.2),
    "betas": ((0.9, 0.999), (0.9, 0.98), (0.9, 0.98), (0.9, 0.98)),
    "adam_eps": (1e-8, 1e-6, 1e-6, 1e-6),
    "lr_tau": (2e-4, 1e-4, 5e-5, 7.8125e-5),
    "rho": (6.5, 8.5, 16.0, 11.0),
    "eps": (1e-14, 1e-14, 1e-6, 1e-14),
    "gamma": (0.2, 0.2, 0.8, 1.0),
    "decay_epochs": (18, 16, 10, None),
    "gamma_schedule": ("cosine", "cosine", "cosine", "constant"),
}
PAIRS_SEEN = {"fastclip-medium": (2_723_840, 100.9e6), "fastclip-large": (9_187_328, 303.3e6)}


def published(config: Config) -> dict[str, object]:
    """The fields of PUBLISHED as a configuration has them."""
    options, optim = config.recipe.options, config.optim
    return {
        "model": config.model.name,
        "width": create_model(config.model.name, device="meta").config.embed_dim,
        "batch": config.train.global_batch,
        "epochs": config.train.epochs,
        "lr": optim.lr,
        "lr_min": optim.schedule.lr_min,
        "warmup": optim.schedule.warmup_steps,
        "decay": optim.weight_decay,
        "betas": optim.betas,
        "adam_eps": optim.eps,
        "lr_tau": optim.lr_scale,
        **{name: options.get(name) for name in ("rho", "eps", "gamma", "decay_epochs", "gamma_schedule")},
    }


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_published_ones(name: str) -> None:
    config = load_config(f"{name}.yaml")
    column = NAMES.index(name)
    assert published(config) == {field: values[column] for field, values in PUBLISHED.items()}
    assert (config.optim.name, config.optim.schedule.name) == ("adamw", "cosine")
    assert (config.optim.scale_schedule.name, config.optim.scale_schedule.threshold) == ("step_thresh", 0.03)
    assert config.optim.scale_schedule.factor == pytest.approx(1 / 3)
    assert (config.recipe.name, config.recipe.options["version"]) == ("fastclip", "v3")
    assert config.recipe.options["tau_grad"] == "reference", "the published rho belong to the published gradient"
    assert config.train.precision == "fp16"
    assert create_model(config.model.name, device="meta").config.init_logit_scale == pytest.approx(math.log(1 / 0.07))


@pytest.mark.parametrize("name", PAIRS_SEEN)
def test_length_is_the_published_one(name: str) -> None:
    pairs, seen = PAIRS_SEEN[name]
    assert (load_config(f"{name}.yaml").train.epochs or 0) * pairs == pytest.approx(seen, rel=2e-3)


@pytest.mark.parametrize("name", [*NAMES, "fastclip-emoji", "fastclip-icons", "fastclip-stamps"])
def test_recipe_takes_its_options(name: str) -> None:
    config = load_config(f"{name}.yaml")
    create_recipe(config)  # refuses an option that the loss does not have
    optim, options = config.optim, config.recipe.options
    for number in (optim.lr, optim.eps, options["eps"], options["rho"], options["gamma"]):
        assert isinstance(number, float), "YAML reads 1e-14 as a text"
    rates = [
        learning_rate(
            step,
            total_steps=100_000,
            peak=optim.lr,
            warmup_steps=optim.schedule.warmup_steps,
            lr_min=optim.schedule.lr_min,
        )
        for step in (0, optim.schedule.warmup_steps, 100_000)
    ]
    assert rates[0] < rates[1] == optim.lr
    assert rates[2] == pytest.approx(optim.schedule.lr_min, abs=1e-12)


def test_emoji_recipe_has_a_rho_that_its_batch_can_reach() -> None:
    config = load_config("fastclip-emoji.yaml")
    assert config.recipe.options["rho"] < math.log(config.train.global_batch - 1)
    assert config.recipe.options["decay_epochs"] * 2 == config.train.epochs
    assert create_model(config.model.name).logit_scale.dtype == torch.float32
