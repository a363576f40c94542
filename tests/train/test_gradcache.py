# SPDX-License-Identifier: Apache-2.0
"""Micro-batches give the gradients of the whole batch, exactly, dropout included."""

from __future__ import annotations

import pytest
import torch

from clipkit.data import Batch
from clipkit.recipes import create_recipe
from clipkit.train.build import build_step
from clipkit.train.config import parse_config
from clipkit.train.runtime import Runtime
from clipkit.train.step import split, step_seed, total_loss
from tests.train import tiny

RUNTIME = Runtime()


def make_step(tmp_path, *, accumulation, patch_dropout=0.0, precision="fp64", **changes):
    overrides = {**tiny.MODEL, "vision.patch_size": 4, "vision.patch_dropout": patch_dropout}
    tree = tiny.settings(
        tmp_path / "data",
        tmp_path / "run",
        model__overrides=overrides,
        train__accumulation=accumulation,
        train__precision=precision,
        optim__grad_clip=None,
        **changes,
    )
    config = parse_config({**tree, "train": {**tree["train"], "accumulation": accumulation, "precision": precision}})
    torch.manual_seed(0)
    recipe = create_recipe(config)
    return build_step(config, RUNTIME, recipe, recipe.build(), total_steps=8)


def make_batch(rows, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(rows, 24, dtype=torch.int64)
    for row in range(rows):
        length = 2 + row % 9
        tokens[row, 0], tokens[row, length] = 598, 599
        tokens[row, 1:length] = torch.randint(1, 590, (length - 1,), generator=generator)
    pixels = torch.randn(rows, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)
    captions = [""] * rows
    return Batch(torch.arange(rows), pixels, tokens, captions, 0, mean=(0.0,) * 3, std=(1.0,) * 3)


def gradients(step):
    return {name: parameter.grad.clone() for name, parameter in step.module.named_parameters()}


def assert_same(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        scale = wanted[name].abs().max().clamp(min=1e-8)
        assert (gradient - wanted[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("parts", [2, 5, 12])
def test_accumulation_equals_the_whole_batch(tmp_path, parts, loss):
    batch = make_batch(12)
    whole = make_step(tmp_path, accumulation=1, loss__name=loss)
    whole(batch, 0)
    parted = make_step(tmp_path, accumulation=parts, loss__name=loss)
    parted(batch, 0)
    assert_same(gradients(parted), gradients(whole), 1e-10)


def test_scale_gradient_is_not_multiplied_by_the_number_of_parts(tmp_path):
    found = {}
    for parts in (1, 4):
        step = make_step(tmp_path, accumulation=parts)
        step(make_batch(12), 0)
        found[parts] = step.module.logit_scale.grad.item()
    assert found[4] == pytest.approx(found[1], rel=1e-12)
    assert found[1] != 0


def test_patch_dropout_is_the_same_in_both_passes(tmp_path):
    """The reference keeps every micro-batch's graph: its dropout happens once, so replay must reproduce it."""
    batch = make_batch(12)
    parted = make_step(tmp_path, accumulation=3, patch_dropout=0.5)
    parted(batch, 7)

    reference = make_step(tmp_path, accumulation=1, patch_dropout=0.5)
    torch.manual_seed(step_seed(5, 7, 0))
    outputs = [reference.recipe.encode(part) for part in split(batch, 3)]
    features = {name: torch.cat([part[name] for part in outputs]) for name in ("image_features", "text_features")}
    features["logit_scale"] = outputs[0]["logit_scale"]
    total_loss(reference.recipe.losses(features, batch), {}).backward()
    assert_same(gradients(parted), gradients(reference), 1e-10)

    other = make_step(tmp_path, accumulation=3, patch_dropout=0.5)
    other(batch, 8)
    difference = other.module.visual.proj.grad - parted.module.visual.proj.grad
    assert difference.abs().max() > 1e-6, "dropout must differ from step to step, else this test proves nothing"


def test_fewer_rows_than_parts_leaves_empty_parts_that_change_nothing(tmp_path):
    batch = make_batch(3)
    assert [len(part) for part in split(batch, 5)] == [0, 1, 0, 1, 1]
    whole, parted = make_step(tmp_path, accumulation=1), make_step(tmp_path, accumulation=5)
    whole(batch, 0)
    parted(batch, 0)
    assert_same(gradients(parted), gradients(whole), 1e-10)


def test_loss_is_called_once_per_step(tmp_path, monkeypatch):
    step = make_step(tmp_path, accumulation=4)
    calls = []
    losses = step.recipe.losses
    monkeypatch.setattr(
        step.recipe, "losses", lambda features, batch: calls.append(len(batch)) or losses(features, batch)
    )
    step(make_batch(12), 0)
    assert calls == [12]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bit_accumulation_stays_close_to_fp32(tmp_path, precision):
    batch = make_batch(12, torch.float32)
    whole = make_step(tmp_path, accumulation=1, precision="fp32")
    whole(batch, 0)
    parted = make_step(tmp_path, accumulation=3, precision=precision)
    tries = 0
    while parted(batch, 0).skipped:  # the loss scale starts too high on purpose; a skipped step leaves the weights
        tries += 1
        assert tries < 20
    wanted = gradients(whole)
    for name, gradient in gradients(parted).items():
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), wanted[name].flatten(), dim=0) > 0.98, name


def test_weights_of_losses_are_explicit(tmp_path):
    batch = make_batch(12)
    single, double = (
        make_step(tmp_path, accumulation=1),
        make_step(tmp_path, accumulation=1, loss__weights={"contrastive": 2}),
    )
    first, second = single(batch, 0), double(batch, 0)
    assert second.loss.item() == pytest.approx(2 * first.loss.item())
    assert second.losses["contrastive"].item() == pytest.approx(first.losses["contrastive"].item())
    with pytest.raises(ValueError, match=r"loss\.weights"):
        make_step(tmp_path, accumulation=1, loss__weights={"contrastiv": 2})
