# SPDX-License-Identifier: Apache-2.0
"""bench.fastclip compares what it says it compares, on what it says, and its page is what the result files say."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import fastclip_tries, runs
from bench.fastclip_figure import FIGURE, PANELS, STYLES, curve, draw, mean_and_error, pairs_to_reach, score
from bench.fastclip_lag import log_means
from bench.fastclip_methods import METHODS, RECIPE, TRIES_EACH
from bench.fastclip_text import COLUMNS, DOCUMENT, ROOT, document
from clipkit.data import Sample, open_dataset, write_shards
from clipkit.recipes import create_recipe
from clipkit.train.config import load_config
from clipkit.train.typed import to_plain
from tests.data.samples import picture

OWN = {"recipe", "optim.lr_scale", "optim.scale_schedule", "model.overrides"}
"""What may differ between methods."""
needs_results = pytest.mark.skipif(not DOCUMENT.exists(), reason="docs/fastclip-results.md is not written yet")


def results() -> tuple[str, Path, Path, Path, Path]:
    text = DOCUMENT.read_text(encoding="utf-8")
    result, tries, lag, control = (ROOT / name for name in re.findall(r"\]\(\.\./(\S+\.json)\)", text))
    return text, result, tries, lag, control


def test_methods_differ_in_the_loss_and_its_temperature_alone() -> None:
    def shared(words: list[str]) -> Any:
        plain = to_plain(load_config(RECIPE, words))
        plain.pop("recipe"), plain["model"].pop("overrides")
        plain["optim"].pop("lr_scale"), plain["optim"].pop("scale_schedule")
        return plain

    base = shared([])
    for name, method in METHODS.items():
        assert len(method.tries) == TRIES_EACH, name
        assert method.chosen in method.tries
        seen = set()
        for one in method.tries:
            words = method.words(one)
            assert shared(words) == base, (name, one)
            create_recipe(load_config(RECIPE, words))
            seen.add(tuple(words))
        assert len(seen) == TRIES_EACH, f"{name} tries something twice"
        overrides = load_config(RECIPE, method.words()).model.overrides
        assert set(overrides) <= {"init_logit_scale"}


def test_methods_are_the_versions_they_are_named_for() -> None:
    for name, method in METHODS.items():
        config = load_config(RECIPE, method.words())
        if name == "openclip":
            assert (config.recipe.name, config.recipe.options) == ("contrastive", {})
        else:
            assert config.recipe.options["version"] == name
    assert set(STYLES) == set(METHODS)


def test_recipe_ships_with_what_was_chosen_for_v3() -> None:
    assert load_config(RECIPE, METHODS["v3"].words()) == load_config(RECIPE)


def test_a_class_is_the_only_one_of_its_tags(tmp_path: Path) -> None:
    tags = {"a": ["animal", "cat"], "b": ["animal", "face"], "c": ["cat"], "d": ["zodiac"]}
    for split, keys in (("test-seen", "abc"), ("test-unseen", "d")):
        samples = [Sample(key, picture(1), key, {"tags": tags[key]}) for key in keys]
        write_shards(tmp_path / "emoji" / split, samples)
    assert runs.build_classes(tmp_path / "emoji", tmp_path / "classes") == {"animal": 1, "zodiac": 1}
    found = open_dataset(tmp_path / "classes")
    assert [found.read(number).metadata["class"] for number in range(len(found))] == ["animal", "zodiac"]
    assert len(set(runs.CLASSES)) == len(runs.CLASSES)


def test_a_finished_run_is_not_run_again_and_another_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def clipkit(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        words = [word for before, word in itertools.pairwise(command) if before == "--set"]
        config = load_config(RECIPE, words)
        run = cwd / config.output.dir
        run.mkdir(parents=True, exist_ok=True)
        import yaml

        (run / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
        calls.append(command[command.index("--resume") + 1])
        return subprocess.CompletedProcess(command, 0 if len(calls) != 1 else 1, "", "killed")

    monkeypatch.setattr(runs.subprocess, "run", clipkit)
    with pytest.raises(RuntimeError, match="killed"):
        runs.train(tmp_path, RECIPE, Path("runs/x"), ["train.seed=1"])
    for _ in range(2):
        assert runs.train(tmp_path, RECIPE, Path("runs/x"), ["train.seed=1"]) == tmp_path / "runs/x"
    runs.train(tmp_path, RECIPE, Path("runs/x"), ["train.seed=2"])
    assert calls == ["never", "auto", "never"], "new, went on, finished and left alone, other settings"


def test_a_try_sees_no_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def train(folder: Path, recipe: str, out: Path, words: list[str]) -> Path:
        seen.append(json.dumps(to_plain(load_config(recipe, words))))
        (tmp_path / "environment.json").write_text('{"commit": "abc"}')
        (tmp_path / "eval.json").write_text(json.dumps({f"style/image_to_text/R@{k}": k / 100 for k in (1, 10)}))
        return tmp_path

    monkeypatch.setattr(fastclip_tries, "train", train)
    for method in METHODS:
        found = fastclip_tries.one_try(tmp_path, method, METHODS[method].chosen, 8)
        assert found["score"] == pytest.approx(0.1)
    assert all("test-" not in config and "data/split" in config for config in seen)


def test_lag_compares_with_the_mean_over_negatives() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sides = []
    for side in (logits, logits.T):
        terms = (side - side.diagonal()[:, None]).exp()
        sides.append((terms.sum(1) - 1) / 5)
    assert torch.allclose(log_means(logits), torch.stack(sides, 1).log())


def test_error_is_that_of_the_mean() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert mean_and_error([1.0])[0] == 1.0
    assert math.isnan(mean_and_error([1.0])[1])


def made_up(seeds: int = 3) -> dict[str, Any]:
    """A result file's rows, v3 better than OpenCLIP's by a point at every seed."""

    def point(samples: int, value: float) -> dict[str, float]:
        ways = [f"{name}/{way}" for name in ("seen", "unseen") for way in ("image_to_text", "text_to_image")]
        return {"samples": samples, "classes/top@1": value, **{f"{w}/R@{k}": value for w in ways for k in (1, 5, 10)}}

    rows = [
        {
            "method": method,
            "seed": seed,
            "commit": "c",
            "tau": 0.05,
            "loss": 1.0,
            "curve": [point(64, 0.1), point(128, value)],
        }
        for seed in range(seeds)
        for method, value in (("openclip", 0.2 + seed / 100), ("v3", 0.21 + seed / 100))
    ]
    stamp = {"device": "d", "cpu": "p", "torch": "2", "commit": "c", "date": "today"}
    sizes = {"train": 6341, "test-seen": 1435, "test-unseen": 159, "captions": 1594}
    return {
        "command": "it",
        "environment": stamp,
        "recipe": to_plain(load_config(RECIPE)),
        "sizes": sizes,
        "classes": {"animal": 3, "arrow": 2, "building": 1},
        "rows": rows,
    }


def test_curves_and_scores_are_means_of_both_directions() -> None:
    point = {f"seen/{way}/R@5": value for way, value in (("image_to_text", 0.2), ("text_to_image", 0.4))}
    assert score(point, "seen") == pytest.approx(0.3)
    rows = made_up()["rows"]
    assert curve(rows, "v3", "classes")[-1] == (128, pytest.approx(0.22), pytest.approx(0.01 / math.sqrt(3)))
    assert all(column(rows[0]["curve"][0]) == pytest.approx(0.1) for column in COLUMNS.values())


def test_pairs_to_reach_a_goal_are_interpolated() -> None:
    points = [(100, 0.1, 0.0), (200, 0.3, 0.0), (300, 0.2, 0.0)]
    assert pairs_to_reach(points, 0.2) == pytest.approx(150)
    assert pairs_to_reach(points, 0.3) == pytest.approx(200)
    assert math.isinf(pairs_to_reach(points, 0.31))


def test_figure_has_a_line_for_each_method(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = draw(made_up(), tmp_path / "f.svg").read_text(encoding="utf-8")
    assert text == draw(made_up(), tmp_path / "g.svg").read_text(encoding="utf-8")
    assert len(PANELS) == 3


def test_page_tells_means_errors_differences_and_tries(tmp_path: Path) -> None:
    row = {"method": "v3", "try": METHODS["v3"].chosen, "words": ["a=1"], "score": 0.1}
    tries = {"epochs": 8, "split": {"train": 4170, "style": 1220, "concepts": 951}, "rows": [row]}
    lag = {"batches": 12, "rows": [{"method": "v1", "try": "this", "u/g, median": 2.5}]}
    for name, content in (("r", made_up()), ("t", tries), ("l", lag), ("c", {"rows": made_up()["rows"][:1]})):
        (tmp_path / name).write_text(json.dumps(content))
    text = document(*(tmp_path / name for name in "rtlc"))
    assert "| FastCLIP v1 | this | 2.50 |" in text
    assert "| OpenCLIP | 21.0 ± 0.6 |" in text
    assert "| FastCLIP v3 | 22.0 ± 0.6 |" in text
    assert "| FastCLIP v3 | +1.0 ± 0.0 |" in text
    assert f"| FastCLIP v3 | **{METHODS['v3'].chosen}** | 10.00 | `a=1` |" in text
    assert "63 negatives" in text


@needs_results
def test_the_page_is_its_result_files() -> None:
    text, *paths = results()
    assert document(*paths) == text
    assert FIGURE.exists()


@needs_results
def test_every_method_ran_with_the_same_seeds_at_least_three_and_saw_the_same_pairs() -> None:
    _, path, *_ = results()
    result = json.loads(path.read_text(encoding="utf-8"))
    seeds = {name: sorted(row["seed"] for row in result["rows"] if row["method"] == name) for name in METHODS}
    assert len(seeds["openclip"]) >= 3
    assert all(one == seeds["openclip"] for one in seeds.values())
    assert len({tuple(point["samples"] for point in row["curve"]) for row in result["rows"]}) == 1
    assert result["methods"] == {name: method.words() for name, method in METHODS.items()}


@needs_results
def test_what_was_chosen_is_the_best_of_what_was_tried() -> None:
    _, _, path, *_ = results()
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for name, method in METHODS.items():
        mine = {row["try"]: row for row in rows if row["method"] == name}
        assert set(mine) == set(method.tries)
        assert method.chosen == max(mine, key=lambda one: mine[one]["score"])
        assert all(row["words"] == method.words(one) for one, row in mine.items())
