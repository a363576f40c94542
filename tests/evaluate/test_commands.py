# SPDX-License-Identifier: Apache-2.0
"""clipkit eval, search and export on a run that the trainer made."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from clipkit.cli import main
from clipkit.evaluate.searching import slug
from tests.evaluate.doubles import COLOURS, tokenizer_of, write_set

CAPTIONS = [f"a {colour} bar" for colour in COLOURS]
STEPS = 2


def train(folder: Path, model: str) -> Path:
    """A run of two steps on a handful of pictures."""
    from clipkit.train.config import parse_config
    from clipkit.train.run import train as train_run

    data = write_set(folder / "data" / "test", CAPTIONS)
    config = {
        "model": {"name": model},
        "data": {"train": str(data)},
        "train": {"global_batch": 4, "steps": STEPS, "log_every": 1},
        "eval": {"retrieval": [{"name": "bars", "data": str(data)}], "batch_size": 4},
        "output": {"dir": str(folder / "run")},
    }
    train_run(parse_config(config))
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("vit"), "vit-tiny-32px")


def test_eval_finds_what_the_trainer_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "eval.json"
    trained = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    assert main(["eval", str(run)]) == 0
    assert json.loads(path.read_text(encoding="utf-8")) == trained
    printed = capsys.readouterr().out
    assert f"step {STEPS}" in printed
    assert "bars/image_to_text" in printed


def test_eval_of_another_set_leaves_the_runs_own_numbers(run: Path, tmp_path: Path, capsys: Any) -> None:
    before = (run / "eval.json").read_text(encoding="utf-8")
    other = write_set(tmp_path / "other", CAPTIONS[:5])
    assert main(["eval", str(run), "--data", str(other)]) == 0
    assert "other/text_to_image" in capsys.readouterr().out
    assert (run / "eval.json").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["eval", "nowhere"], "nowhere does not exist"),
        (["eval", "RUN", "--step", "77"], "step: got 77"),
        (["eval", "RUN", "--captions", "x.txt"], "--captions: got no --data"),
        (["eval", "RUN", "--set", "eval.batch_sise=4"], "batch_size"),
        (["search", "RUN", "x", "--top", "0"], "--top: got 0"),
        (["search", "RUN", "x", "--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([str(run) if word == "RUN" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_search_embeds_pictures_once_and_writes_a_page(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["search", str(run), "a red bar", "<b>", "--top", "3"]) == 0
    first = capsys.readouterr().out
    assert sum(line.strip().startswith(("1 ", "2 ", "3 ")) for line in first.splitlines()) == 6
    page = (run / "search" / "a-red-bar-b.html").read_text(encoding="utf-8")
    assert page.count("<img") == 6
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    monkeypatch.setattr("clipkit.evaluate.searching.embed_images", lambda *_, **__: pytest.fail("embedded again"))
    assert main(["search", str(run), "a red bar", "<b>", "--top", "3"]) == 0
    assert capsys.readouterr().out == first


def test_search_makes_a_damaged_cache_again_and_drops_old_ones(run: Path) -> None:
    assert main(["search", str(run), "bar"]) == 0
    (cache,) = (run / "search").glob("*.npz")
    whole = cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2])
    old = cache.with_name(cache.name.replace(f"{STEPS:08d}", f"{STEPS - 1:08d}"))
    old.write_bytes(whole)
    assert main(["search", str(run), "bar"]) == 0
    with np.load(cache, allow_pickle=False) as stored:
        assert stored["features"].shape[0] == len(CAPTIONS)
    assert not old.exists()


def test_slugs_stay_in_their_folder() -> None:
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("Rotes Obst, größer!") == "rotes-obst-größer"
    assert slug("///") == "query"
    assert len(slug("x" * 500)) <= 60


def test_exported_file_loads_into_open_clip_with_equal_logits(
    run: Path, tmp_path: Path, open_clip: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    from clipkit.train.loading import load_run

    model, _, _ = load_run(run)
    assert main(["export", str(run), "--out", str(tmp_path / "exported.safetensors"), "--layout", "open_clip"]) == 0
    assert "logits of 4 pictures and 4 captions are equal" in capsys.readouterr().out
    open_clip.add_model_config(tmp_path / "exported.json")
    named = open_clip.create_model("exported", pretrained=str(tmp_path / "exported.safetensors")).eval()
    assert main(["export", str(run), "--out", str(tmp_path / "folder")]) == 0
    local, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'folder'}")
    assert list(preprocess.transforms[-1].mean) == pytest.approx(list(model.config.vision.mean))
    pixels, tokens = torch.randn(3, 3, 32, 32), tokenizer_of(model)(["a red bar", "a", "b c d"])
    with torch.no_grad():
        ours = model(pixels, tokens)
        expected = ours["image_features"] @ ours["text_features"].T
        for peer in (named, local.eval()):
            images, texts, scale = peer(pixels, tokens)[:3]
            torch.testing.assert_close(images @ texts.T, expected, atol=2e-5, rtol=0)
            torch.testing.assert_close(scale, ours["logit_scale"])


def test_a_tower_that_open_clip_lacks_is_said_and_written_in_our_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from clipkit.encoders import CLIP, CLIPConfig, load_checkpoint

    run = train(tmp_path, "conv-tiny-32px")
    weights = tmp_path / "conv.safetensors"
    assert main(["export", str(run), "--out", str(weights), "--layout", "open_clip"]) == 2
    assert not weights.exists()
    assert main(["export", str(run), "--out", str(weights)]) == 0
    assert "open_clip has no class for this model" in capsys.readouterr().out
    model = CLIP(CLIPConfig.from_dict(json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))))
    load_checkpoint(model, weights)


def test_an_eva_model_is_written_as_its_publishers_read_it_and_no_other_is(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from clipkit.encoders import CLIP, CLIPConfig, load_checkpoint

    weights = tmp_path / "eva.safetensors"
    assert main(["export", str(run), "--out", str(weights), "--layout", "eva_clip"]) == 2
    assert not weights.exists()
    assert main(["export", str(train(tmp_path, "eva-tiny-32px")), "--out", str(weights), "--layout", "eva_clip"]) == 0
    assert {"text.text_projection", "visual.rope.freqs_cos", "visual.blocks.0.attn.q_bias"} <= set(load_file(weights))
    model = CLIP(CLIPConfig.from_dict(json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))))
    assert load_checkpoint(model, weights).layout == "EVA-CLIP"
