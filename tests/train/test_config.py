# SPDX-License-Identifier: Apache-2.0
"""A configuration is what the file says, or an error that names the place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from clipkit.cli import main
from clipkit.train.config import dump_config, load_config, parse_config
from clipkit.train.typed import to_plain
from tests.train import tiny

RECIPES = Path(__file__).resolve().parents[2] / "clipkit" / "recipes"


@pytest.fixture
def tree(tmp_path):
    return tiny.settings(tmp_path / "data", tmp_path / "run")


@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_parses_by_name(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no file of that name here: the installed one is meant
    assert load_config(recipe).train.global_batch > 0


def test_dumped_configuration_reads_back_equal(tree):
    config = parse_config(tree)
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_settings_reach_nested_keys_and_free_form_sections(tree, tmp_path):
    path = tiny.write_config(tmp_path / "c.yaml", tree)
    config = load_config(
        path,
        ["optim.schedule.warmup_steps=7", "model.overrides.vision.patch_dropout=0.5", "optim.lr=2e-4", "train.steps=3"],
    )
    assert config.optim.schedule.warmup_steps == 7
    assert config.model.overrides["vision.patch_dropout"] == 0.5
    assert config.optim.lr == 2e-4, "YAML reads 2e-4 as a text; a number is meant"
    assert config.train.steps == 3


@pytest.mark.parametrize(
    "setting, error, words",
    [
        ("optim.learning_rate=1", ValueError, ["optim.learning_rate", "unknown key", "'lr'"]),
        ("trane.steps=1", ValueError, ["trane", "'train'"]),
        ("optim.schedule.warmup=1", ValueError, ["optim.schedule.warmup", "'warmup_steps'"]),
        ("optim.lr=fast", TypeError, ["optim.lr", "'fast'", "a number"]),
        ("train.steps=1.5", TypeError, ["train.steps", "1.5", "a whole number"]),
        ("train.compile=1", TypeError, ["train.compile", "true or false"]),
        ("optim.betas=[0.9]", ValueError, ["optim.betas", "1 values", "2"]),
        ("optim.betas=[0.9, 1.0]", ValueError, ["optim.betas", "[0, 1)"]),
        ("train.precision=bf61", ValueError, ["train.precision", "'bf16'"]),
        ("train.epochs=2", ValueError, ["train.epochs", "exactly one"]),
        ("train.global_batch=0", ValueError, ["train.global_batch", "at least 1"]),
        ("train.accumulation=13", ValueError, ["train.accumulation", "global_batch=12"]),
        ("train.keep_last=0", ValueError, ["train.keep_last"]),
        ("optim.grad_clip=0", ValueError, ["optim.grad_clip", "null"]),
        ("optim.name=moun", ValueError, ["optim.name", "'muon'"]),
        ("optim.muon.momentum=1", ValueError, ["optim.muon.momentum", "[0, 1)"]),
        ("optim.muon.iterations=0", ValueError, ["optim.muon.iterations", "at least 1"]),
        ("optim.lion.betas=[0.9, 1]", ValueError, ["optim.lion.betas", "[0, 1)"]),
        ("optim.sgd.momentum=-0.1", ValueError, ["optim.sgd.momentum", "[0, 1)"]),
        ("optim.sgd={momentum: 0, nesterov: true}", ValueError, ["optim.sgd.nesterov", "momentum"]),
        ("optim.image.layer_decay=0", ValueError, ["optim.image.layer_decay", "above 0 and at most 1"]),
        ("optim.text.layer_decay=1.1", ValueError, ["optim.text.layer_decay", "above 0 and at most 1"]),
        ("optim.text.lr=-1", ValueError, ["optim.text.lr", "at least 0"]),
        ("optim.image.decay=0.9", ValueError, ["optim.image.decay", "'layer_decay'"]),
        ("optim.lamb.trust=nvlam", ValueError, ["optim.lamb.trust", "'nvlamb'"]),
        ("optim.scale_schedule.name=step_tresh", ValueError, ["optim.scale_schedule.name", "'step_thresh'"]),
        ("optim.scale_schedule.threshold=0", ValueError, ["optim.scale_schedule.threshold", "above 0"]),
        ("optim.scale_schedule.factor=-1", ValueError, ["optim.scale_schedule.factor", "at least 0"]),
        ("optim.lr_scale=-1", ValueError, ["optim.lr_scale", "at least 0"]),
        ("data.tags=[3, 1]", ValueError, ["data.tags"]),
        ("eval.retrieval=[{name: a, data: x}, {name: a, data: y}]", ValueError, ["different name"]),
        ("eval.retrieval=[{name: a}]", ValueError, ["eval.retrieval[0].data", "nothing"]),
        ("train.steps.more=1", ValueError, ["train.steps.more", "a path below train.steps"]),
        ("optim.lr", ValueError, ["--set", "key=value"]),
        ("optim.betas=[", ValueError, ["--set optim.betas", "valid YAML"]),
    ],
)
def test_mistakes_name_the_key_what_came_and_what_is_wanted(setting, error, words, tree, tmp_path):
    path = tiny.write_config(tmp_path / "c.yaml", tree)
    with pytest.raises(error) as caught:
        load_config(path, [setting])
    assert type(caught.value) is error
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_configuration_is_immutable(tree):
    config = parse_config(tree)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 5
    with pytest.raises(TypeError, match="immutable"):
        config.model.overrides["vision.width"] = 8


def test_cli_prints_the_resolved_configuration(tree, tmp_path, capsys):
    path = tiny.write_config(tmp_path / "c.yaml", tree)
    assert main(["train", "--config", str(path), "--out", "elsewhere", "--print-config"]) == 0
    shown = parse_config(yaml.safe_load(capsys.readouterr().out))
    assert to_plain(shown)["output"] == {"dir": "elsewhere"}


def test_cli_answers_a_mistake_in_one_line(tree, tmp_path, capsys):
    path = tiny.write_config(tmp_path / "c.yaml", tree)
    assert main(["train", "--config", str(path), "--set", "optim.lrr=1"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "did you mean 'lr'" in printed
    assert main(["train", "--config", "nowhere.yaml"]) == 2
    assert "vit-b-32.yaml" in capsys.readouterr().err
