# SPDX-License-Identifier: Apache-2.0
"""The report page: self-contained, escaped, honest in its choice, and seen by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from clipkit.evaluate import evaluate_run
from clipkit.report import write_report
from clipkit.report.facts import initialisation, markdown
from clipkit.report.gallery import spread
from clipkit.train.config import Config, dump_config, parse_config
from tests.evaluate.doubles import tiny_model, tokenizer_of, write_set

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>\"'&amp; </title>"
CAPTIONS = [HOSTILE, *(f"picture number {number}" for number in range(1, 20))]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
LOADING = ("src", "srcset", "href", "xlink:href", "data", "poster", "action", "formaction", "background")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def config_for(folder: Path, **evaluation: Any) -> Config:
    return parse_config(
        {
            "model": {"name": "vit-tiny-32px"},
            "data": {"train": str(folder)},
            "train": {"global_batch": 8, "steps": 3},
            "eval": evaluation,
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    """A finished run's folder with its report, over a set whose every text is hostile."""
    above = tmp_path_factory.mktemp("data")
    folder = write_set(above / "test", CAPTIONS, broken=(7,))
    (above / "ATTRIBUTION.md").write_text(f"# By {HOSTILE}\n\nSee https://example.org/x\n", encoding="utf-8")
    run_dir = tmp_path_factory.mktemp("runs") / "my run"
    run_dir.mkdir()
    config = config_for(folder, retrieval=[{"name": HOSTILE, "data": str(folder)}])
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    environment = {"command": f"clipkit train --config '{HOSTILE}'", "torch": "2.13", "gpu": {"name": HOSTILE}}
    (run_dir / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "loss": 2.0 / step, "lr": 1e-3, "logit_scale": 14.0, "seconds": step * 2.0,
         "samples_per_second": 50.0 + step}
        for step in (1, 2, 3)
    ]  # fmt: skip
    lines.append({"kind": "eval", "step": 3, "metrics": {f"{HOSTILE}/image_to_text/R@1": 0.25}})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert write_report(run_dir, model, tokenizer_of(model), config) == run_dir / "report.html"
    return run_dir


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_self_contained(text: str) -> None:
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "audio", "video", "foreignobject")
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in LOADING:
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,", "data:,")), (tag, name)
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    assert style
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text


def test_page_asks_nobody_for_anything(run: Path) -> None:
    assert_self_contained((run / "report.html").read_text(encoding="utf-8"))


def test_every_text_from_outside_is_escaped(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    assert HOSTILE in page.words or any(HOSTILE in word for word in page.words)
    assert any(attributes["alt"] == HOSTILE for attributes in page.all("img"))
    assert len(page.all("title")) == 1 + len(page.all("svg")) - len(
        [a for a in page.all("svg") if a.get("class") == "key"]
    )


def test_headline_is_what_the_evaluation_computes(run: Path, model: Any) -> None:
    data = re.search(r"train: (.*)", (run / "config.yaml").read_text(encoding="utf-8"))
    assert data is not None
    evaluation = config_for(Path(data.group(1)), retrieval=[{"name": "x", "data": data.group(1)}]).eval
    metrics = evaluate_run(model, tokenizer_of(model), evaluation)
    text = (run / "report.html").read_text(encoding="utf-8")
    share = 100 * metrics["x/image_to_text/R@1"]
    assert f'<span class="value">{share:.1f}<small>%</small>' in text
    assert "of 19 pictures find their caption first among 19" in text
    assert f"Chance: {100 / 19:.1f} %" in text
    assert "1 broken and skipped" in text


def test_grids_mark_right_answers_and_have_a_text_for_every_picture(run: Path) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    pictures = page.all("img")
    assert len(pictures) >= 12 + 12 * 5
    assert all(attributes["alt"] for attributes in pictures)
    assert any(attributes.get("class") == "right" for attributes in page.all("li"))


@pytest.mark.parametrize("lines", [0, 1])
def test_page_is_whole_with_few_numbers_and_no_sets(tmp_path: Path, model: Any, lines: int) -> None:
    log = json.dumps({"kind": "train", "step": 1, "loss": 2.0}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(log * lines, encoding="utf-8")
    path = write_report(tmp_path, model, tokenizer_of(model), config_for(tmp_path), chance_loss=4.0)
    text = path.read_text(encoding="utf-8")
    assert ("guessing" in text) == bool(lines)
    assert_self_contained(text)
    assert "names no evaluation set" in text
    assert ("<circle" in text) == bool(lines)


def test_a_set_that_has_gone_is_said_and_does_not_end_the_report(tmp_path: Path, model: Any) -> None:
    config = config_for(tmp_path, retrieval=[{"name": "gone", "data": str(tmp_path / "nowhere")}])
    text = write_report(tmp_path, model, tokenizer_of(model), config).read_text(encoding="utf-8")
    assert "gone is missing" in text


def test_zero_shot_numbers_are_those_evaluated_last(tmp_path: Path, model: Any) -> None:
    found = {
        "birds/top@1": 0.5,
        "birds/top@5": 0.75,
        "birds/chance_top@1": 0.1,
        "birds/queries": 8,
        "birds/candidates": 10,
    }
    (tmp_path / "eval.json").write_text(json.dumps({"step": 3, **found}), encoding="utf-8")
    config = config_for(tmp_path, zero_shot=[{"name": "birds", "data": "x", "classes": "y"}])
    text = write_report(tmp_path, model, tokenizer_of(model), config).read_text(encoding="utf-8")
    assert "of 8 pictures are named right among 10 classes" in text
    assert "Chance: 10.0 %; this is 5 times as often" in text


def test_choice_spans_best_to_worst_in_proportion() -> None:
    ranks = [0] * 30 + list(range(1, 71))
    names = [f"name {number}" for number in range(100)]
    chosen = spread(range(100), ranks, names, 10)
    assert [ranks[row] for row in chosen].count(0) == 3
    assert [ranks[row] for row in chosen] == sorted(ranks[row] for row in chosen)
    assert chosen == spread(range(100), ranks, names, 10)
    assert sorted(spread(range(4), [3, 1, 2, 0], names, 12)) == [0, 1, 2, 3]
    assert spread([], [], [], 12) == []


def test_attribution_table_becomes_a_table() -> None:
    made = markdown("# Title\n\nA `code` & text.\n\n| a | b |\n|---|---|\n| <b> | https://x.org |\n\n- one\n- two\n")
    assert "<h3>Title</h3>" in made
    assert "<code>code</code> &amp; text." in made
    assert '<td class="text">&lt;b&gt;</td><td class="text">https://x.org</td>' in made
    assert "<li>one</li><li>two</li>" in made


# All of it at once when the page has loaded: the browser writes the document out as soon as nothing is left to run.
PROBE = """<script>addEventListener("load", () => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const decodes = image => {
    if (!(image.naturalWidth > 0)) return false;
    canvas.clearRect(0, 0, 1, 1);
    canvas.drawImage(image, 0, 0);
    return canvas.getImageData(0, 0, 1, 1).data[3] === 255;
  };
  const drawn = [...document.querySelectorAll(".chart > svg .line, .chart > svg .dot")];
  document.documentElement.dataset.probe = JSON.stringify({
    pictures: document.images.length,
    decoded: [...document.images].filter(decodes).length,
    curves: drawn.filter(node => node.getBoundingClientRect().width > 0).length,
    charts: document.querySelectorAll(".chart > svg").length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    title: document.title,
    requests: performance.getEntriesByType("resource").filter(one => !one.name.startsWith("data:")).length,
  });
});</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH: nobody has looked at the page")
@pytest.mark.parametrize("size", ["1280,1600", "500,900"])
def test_a_browser_shows_pictures_and_curves(run: Path, tmp_path: Path, size: str) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    # Only this copy may run a script: the one that looks.
    probed = text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'").replace(
        "</body>", PROBE
    )
    (tmp_path / "page.html").write_text(probed, encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size}", "--virtual-time-budget=5000", "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    root = Page(dumped).all("html")[0]
    seen = json.loads(root["data-probe"])
    assert seen["pictures"] >= 12 + 12 * 5
    assert seen["decoded"] == seen["pictures"]
    assert seen["charts"] == 5
    assert seen["curves"] >= 5
    assert seen["wide"] <= 0
    assert seen["requests"] == 0
    assert seen["title"] == "my run · clipkit"


def test_the_page_says_where_each_towers_first_weights_came_from() -> None:
    tower = {"source": HOSTILE, "layout": "timm image tower", "loaded": ["a", "b"], "resized": {"c": {}}, "skipped": {}}
    said = initialisation({"image": tower, "text": None})
    assert "The image tower started from " in said
    assert "(timm image tower): 2 tensors loaded, 1 tensors resized, 0 tensors skipped" in said
    assert "<script" not in said
    assert "text tower" not in said
    assert initialisation({}) == ""
