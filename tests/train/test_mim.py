# SPDX-License-Identifier: Apache-2.0
"""Masked image modelling: what is asked and of whom, and that neither ranks, micro-batches nor a resume show."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipkit.encoders import create_model, list_models
from clipkit.parallel import mean_over_ranks
from clipkit.recipes import create_recipe
from clipkit.recipes._masked import MaskedModel, image_tower, normalised_patches
from clipkit.train import Ending, load_run, parse_config, train
from clipkit.train.build import build_step
from clipkit.train.runtime import Runtime
from clipkit.train.session import Session
from clipkit.train.step import TrainStep
from tests.train import tiny
from tests.train.test_gradcache import assert_same, make_batch

STEPS = 6
TEXT = {name: value for name, value in tiny.MODEL.items() if name.startswith("text.")}
EVA = {
    **TEXT,
    "embed_dim": 16,
    "vision.width": 16,
    "vision.layers": 2,
    "vision.head_width": 8,
    "vision.hidden": 24,
    "vision.patch_size": 8,
    "vision.rope_grid": 4,
}
MODELS = {"eva-tiny-32px": EVA, "vit-tiny-32px": dict(tiny.MODEL)}


def tree(data: Path, out: Path, *, name: str = "eva-tiny-32px", **options: object) -> dict[str, Any]:
    settings: dict[str, Any] = tiny.settings(data, out)
    settings["model"] = {"name": name, "overrides": MODELS[name]}
    settings["recipe"] = {"name": "mim", "options": options}
    settings["train"].update(precision="fp64", steps=STEPS)
    return settings


def make_step(settings: dict[str, Any], **changes: object) -> TrainStep:
    settings["train"].update(changes)
    settings["optim"]["grad_clip"] = None
    config = parse_config(settings)
    torch.manual_seed(0)
    recipe = create_recipe(config)
    return build_step(config, Runtime(), recipe, recipe.build(), total_steps=STEPS)


def trained_gradients(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: one.grad.clone() for name, one in step.module.named_parameters() if one.grad is not None}


def run_alone(settings: dict[str, Any], **options: Any) -> Ending:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
        return train(parse_config(settings), command=["clipkit", "train"], **options)


def loss_by_definition(model: MaskedModel, pixels: torch.Tensor, hidden: list[list[int]]) -> torch.Tensor:
    """Picture by picture and patch by patch. The tower sees the token because the patch embedding says it there."""
    tower = image_tower(model.clip)
    size, grid = tower.config.patch_size, tower.config.grid
    terms = []
    for picture, places in zip(pixels, hidden, strict=True):
        tokens = []
        for place in range(grid * grid):
            row, column = place // grid * size, place % grid * size
            patch = picture[:, row : row + size, column : column + size]
            if hasattr(tower, "patch_embed"):
                layer, positions, first = tower.patch_embed.proj, tower.pos_embed[0], tower.cls_token[0, 0]
            else:
                layer, positions, first = tower.conv1, tower.positional_embedding, tower.class_embedding
            seen = layer(patch[None]).flatten() if place not in places else model.mask_token
            tokens.append(seen + positions[place + 1])
        x = torch.stack([first + positions[0], *tokens])[None]
        if hasattr(tower, "patch_embed"):
            for block in tower.blocks:
                x = block(x, tower._rotation(None, x))
            x = tower.norm(x)
        else:
            from clipkit.encoders.transformer import PictureLayout

            x = tower.ln_pre(x)
            for block in tower.transformer.resblocks:
                x = block(x, PictureLayout())
            x = tower.ln_post(x)
        for place in places:
            row, column = place // grid * size, place % grid * size
            patch = picture[:, row : row + size, column : column + size].flatten()
            wanted = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            terms.append((model.lm_head(x[0, place + 1]) - wanted).square().mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("name", MODELS)
def test_loss_is_the_definition_in_float64(tmp_path: Path, name: str) -> None:
    step = make_step(tree(tmp_path, tmp_path, name=name))
    batch, recipe = make_batch(5), step.recipe
    wanted = loss_by_definition(step.module, batch.pixels, recipe.hidden(batch).tolist())
    found = recipe.step(batch)["masked"]
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    assert 0.5 < found.item() < 2, "about the targets' own variance at the start"
    learned = [one for one in step.module.parameters() if one.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(found, learned), torch.autograd.grad(wanted, learned), strict=True):
        assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max().clamp(min=1e-6)


def test_a_hidden_patch_is_not_seen_and_one_that_is_seen_is_not_asked_for(tmp_path: Path) -> None:
    step = make_step(tree(tmp_path, tmp_path))
    batch, recipe = make_batch(1), step.recipe
    hidden = recipe.hidden(batch)
    assert hidden.shape == (1, 6)  # of 16
    said = step.module(batch.pixels, hidden)
    for place in range(16):
        changed = batch.pixels.clone()
        row, column = place // 4 * 8, place % 4 * 8
        changed[:, :, row : row + 8, column : column + 8] = 7.0
        same = torch.equal(step.module(changed, hidden), said)
        assert same == (place in hidden[0].tolist())
        before, after = (normalised_patches(one, 8) for one in (batch.pixels, changed))
        assert [bool((a != b).any()) for a, b in zip(before[0], after[0], strict=True)] == [
            number == place for number in range(16)
        ]


def test_all_that_is_learned_is_the_tower_token_and_layer(tmp_path: Path) -> None:
    for name, projection in (("eva-tiny-32px", ("head.weight", "head.bias")), ("vit-tiny-32px", ("proj",))):
        step = make_step(tree(tmp_path, tmp_path, name=name))
        before = {name: value.clone() for name, value in step.module.state_dict().items()}
        step(make_batch(4), 0)
        changed = {name for name, value in step.module.state_dict().items() if not torch.equal(value, before[name])}
        tower = {f"clip.visual.{one}" for one, _ in image_tower(step.module.clip).named_parameters()}
        assert changed == {*tower, "mask_token", "lm_head.weight", "lm_head.bias"} - {
            f"clip.visual.{one}" for one in projection
        }


def test_patch_dropout_leaves_no_patch_out_here(tmp_path: Path) -> None:
    settings = tree(tmp_path, tmp_path)
    plain = make_step(settings)
    settings["model"] = {"name": "eva-tiny-32px", "overrides": {**EVA, "vision.patch_dropout": 0.5}}
    dropping = make_step(settings)
    batch = make_batch(3)
    assert torch.equal(plain.recipe.step(batch)["masked"], dropping.recipe.step(batch)["masked"])


@pytest.mark.parametrize("parts", [2, 5])
def test_accumulation_equals_the_whole_batch(tmp_path: Path, parts: int) -> None:
    batch = make_batch(7)
    whole = make_step(tree(tmp_path, tmp_path))
    parted = make_step(tree(tmp_path, tmp_path), accumulation=parts)
    losses = [step(batch, 3).loss.item() for step in (whole, parted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert_same(trained_gradients(parted), trained_gradients(whole), 1e-10)


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    batch = make_batch(4)
    settings = tree(tmp_path, tmp_path)
    plain = make_step(settings)
    settings["model"]["grad_checkpointing"] = True
    again = make_step(settings)
    for step in (plain, again):
        step(batch, 0)
    assert_same(trained_gradients(again), trained_gradients(plain), 1e-12)


def test_masks_differ_from_step_to_step(tmp_path: Path) -> None:
    recipe = make_step(tree(tmp_path, tmp_path)).recipe
    first, second = (recipe.hidden(make_batch_of_step(number)) for number in (0, 1))
    assert not torch.equal(first, second)


def make_batch_of_step(number: int):
    import dataclasses

    return dataclasses.replace(make_batch(12), step=number)


# A teacher


def test_features_are_what_the_teacher_says_of_the_whole_picture(tmp_path: Path, data: Path) -> None:
    """The teacher is a run; the loss is the negative cosine of each hidden patch, taken one by one."""
    contrastive = tiny.settings(data, tmp_path / "teacher", train__save_every=2)
    contrastive["train"] = {**contrastive["train"], "steps": 2}  # type: ignore[dict-item]
    run_alone(contrastive)
    step = make_step(
        tree(data, tmp_path / "run", target="features", teacher=str(tmp_path / "teacher")),
    )
    teacher = load_run(tmp_path / "teacher")[0].double()
    batch, recipe = make_batch(3), step.recipe
    hidden = recipe.hidden(batch)
    said = step.module(batch.pixels, hidden)
    assert said.shape == (3, 6, 16)
    tower: Any = teacher.visual
    known = tower.encode_patches(batch.pixels) @ tower.proj
    terms = [
        -nn.functional.cosine_similarity(said[row, number], known[row, place], dim=0)
        for row, places in enumerate(hidden.tolist())
        for number, place in enumerate(places)
    ]
    assert recipe.step(batch)["masked"].item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-10)
    before = {name: value.clone() for name, value in recipe._teacher.state_dict().items()}  # type: ignore[attr-defined]
    step(batch, 0)
    assert all(torch.equal(value, before[name]) for name, value in recipe._teacher.state_dict().items())  # type: ignore[attr-defined]
    assert not any("teacher" in name for name in step.module.state_dict()), "it belongs to no checkpoint"


def test_the_class_tokens_way_is_the_features_way() -> None:
    """`encode_patches` is the tower's own forward pass, read at the patches: with no patch hidden, and the class token
    read instead, it would give the picture's features."""
    for name, overrides in MODELS.items():
        model = create_model(name, **overrides).double().eval()
        pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        seen = []
        norm = model.visual.norm if name.startswith("eva") else model.visual.ln_post
        handle = norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model.visual(pixels)
        patches = model.visual.encode_patches(pixels)
        handle.remove()
        assert patches.shape == (2, 16, 16)
        tokens = model.visual.encode_patches(pixels, torch.tensor([[0], [3]]), torch.zeros(16, dtype=torch.float64))
        assert not torch.allclose(tokens, patches)
        assert torch.allclose(norm(seen[1]), patches)


def test_a_teacher_from_a_file_needs_its_models_name(tmp_path: Path) -> None:
    model = create_model("vit-tiny-32px", **tiny.MODEL)
    torch.save(model.state_dict(), tmp_path / "teacher.pt")
    with pytest.raises(ValueError, match="teacher_model"):
        make_step(tree(tmp_path, tmp_path, target="features", teacher=str(tmp_path / "teacher.pt")))
    whole = create_model("vit-small-32px")
    torch.save(whole.state_dict(), tmp_path / "small.pt")
    with pytest.raises(ValueError, match="patch_size"):
        make_step(
            tree(
                tmp_path,
                tmp_path,
                target="features",
                teacher=str(tmp_path / "small.pt"),
                teacher_model="vit-small-32px",
            )
        )
    with pytest.raises(FileNotFoundError):
        make_step(tree(tmp_path, tmp_path, target="features", teacher=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "words"}, "recipe.options.target"),
        ({"target": "features"}, "recipe.options.teacher"),
        ({"teacher": "run"}, "recipe.options.teacher"),
        ({"mask_ratio": 1.0}, "recipe.options.mask_ratio"),
        ({"mask_ration": 0.4}, "did you mean mask_ratio"),
    ],
)
def test_bad_options_are_named_before_anything_is_built(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_recipe(parse_config(tree(tmp_path, tmp_path, **options)))


def test_other_losses_and_towers_without_patches_are_refused(tmp_path: Path) -> None:
    settings = tree(tmp_path, tmp_path)
    for loss in ({"name": "siglip"}, {"label_smoothing": 0.1}, {"weights": {"contrastive": 1.0}}):
        with pytest.raises(ValueError, match="loss"):
            create_recipe(parse_config({**settings, "loss": loss}))
    assert "conv-tiny-32px" in list_models()
    with pytest.raises(ValueError, match="transformer over patches"):
        create_recipe(parse_config({**settings, "model": {"name": "conv-tiny-32px"}})).build()


# Whole runs


def test_a_resumed_run_is_the_same_to_the_last_bit(data: Path, tmp_path: Path) -> None:
    whole, parts = tree(data, tmp_path / "whole"), tree(data, tmp_path / "parts")
    assert run_alone(whole) is Ending.FINISHED
    show = Session.show

    def and_stop(self: Session, **facts: float) -> None:
        show(self, **facts)
        if self.position.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "show", and_stop)
        assert run_alone(parts) is Ending.PREEMPTED
    assert run_alone(parts) is Ending.FINISHED
    assert tiny.losses(tmp_path / "parts") == tiny.losses(tmp_path / "whole")
    ours, theirs = (tiny.checkpoint_tensors(tmp_path / name, STEPS) for name in ("parts", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    other = {"target": "features", "teacher": str(tmp_path / "whole")}
    with pytest.raises(ValueError, match=r"recipe\.options\.target"):
        run_alone({**parts, "recipe": {"name": "mim", "options": other}})


def test_a_run_has_a_report_and_gives_its_tower_to_another(data: Path, tmp_path: Path) -> None:
    settings = tree(data, tmp_path / "mim")
    settings["train"].update(precision="fp32", steps=2)
    assert train(parse_config(settings), command=["clipkit", "train"]) is Ending.FINISHED
    page = (tmp_path / "mim" / "report.html").read_text(encoding="utf-8")
    assert "eva-tiny-32px" in page
    assert "guessing" not in page, "ln(N) is what a contrastive loss begins at"
    model, config, _ = load_run(tmp_path / "mim")
    assert config.recipe.name == "mim"
    stored = tiny.checkpoint_tensors(tmp_path / "mim", 2)
    assert torch.equal(model.visual.pos_embed, stored["model.clip.visual.pos_embed"])

    second = tiny.settings(data, tmp_path / "clip", model__name="eva-tiny-32px", model__overrides=EVA)
    second["model"]["init"] = {"image": str(tmp_path / "mim")}  # type: ignore[index]
    second["train"].update(steps=1, seed=6)  # type: ignore[attr-defined]
    second["optim"]["lr"] = 0.0  # type: ignore[index]
    run_alone(second)
    begun, _, _ = load_run(tmp_path / "clip")
    for name, value in model.visual.state_dict().items():
        assert torch.equal(begun.visual.state_dict()[name], value) != name.startswith("head.weight"), name


def test_mean_over_no_rows_is_nothing() -> None:
    rows = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    assert mean_over_ranks(rows, None).item() == 0
    some = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64, requires_grad=True)
    found = mean_over_ranks(some, None)
    found.backward()
    assert found.item() == 3
    assert some.grad is not None
    assert some.grad.tolist() == [1 / 3] * 3


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, and two ranks in several ways."""
    base = tmp_path_factory.mktemp("mim")
    broken = tiny.build_broken_set(base / "broken")
    alone = {"one": tree(data, base / "one"), "broken-one": tree(broken, base / "broken-one")}
    ranks = {name: tree(data, base / name) for name in ("ddp", "fsdp2", "accumulated")}
    ranks["fsdp2"]["train"]["parallel"] = "fsdp2"
    ranks["accumulated"]["train"]["accumulation"] = 3
    ranks["broken-two"] = tree(broken, base / "broken-two")
    for name in ("broken-one", "broken-two"):  # broken rows fall where they fall: ranks have unequal numbers, or none
        {**alone, **ranks}[name]["train"].update(global_batch=4, seed=7)
    for settings in alone.values():
        run_alone(settings)
    tiny.run_on_ranks(2, [{"tree": one} for one in ranks.values()], base)
    return base


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reference"),
    [("ddp", "one"), ("fsdp2", "one"), ("accumulated", "one"), ("broken-two", "broken-one")],
)
def test_two_ranks_train_what_one_does(runs: Path, name: str, reference: str) -> None:
    ours, theirs = tiny.losses(runs / name), tiny.losses(runs / reference)
    assert ours.keys() == theirs.keys() == set(range(1, STEPS + 1))
    assert all(loss == pytest.approx(theirs[step], rel=1e-9) for step, loss in ours.items())
    found, wanted = (tiny.checkpoint_tensors(runs / one, STEPS) for one in (name, reference))
    assert found.keys() == wanted.keys()
    for tensor, value in found.items():
        assert torch.allclose(value, wanted[tensor], rtol=1e-6, atol=1e-9), tensor


def test_the_loss_falls(data: Path, tmp_path: Path) -> None:
    settings = tree(data, tmp_path / "run")
    settings["train"].update(precision="fp32", steps=40)
    run_alone(settings)
    losses = list(tiny.losses(tmp_path / "run").values())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert math.isfinite(losses[-1])
