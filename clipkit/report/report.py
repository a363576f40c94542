# SPDX-License-Identifier: Apache-2.0
"""report.html: what a run came to, in one file that a person can open, keep and send."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from clipkit.evaluate import EmbeddedSet, embed_retrieval_set, retrieval_metrics
from clipkit.report import facts
from clipkit.report.curves import draw
from clipkit.report.gallery import NEAREST, captions_to_pictures, pictures_to_captions
from clipkit.report.metrics import History, charts, read_history
from clipkit.report.numbers import headline, retrieval_table, zero_shot_table
from clipkit.report.page import page, section, write_page

logger = logging.getLogger(__name__)

_CHOICE = (
    "Chosen by rule, not by hand: all are ordered from the best place of the right answer to the worst, and twelve are "
    "taken at even distances, so about the share that is right here is right in the whole set. Numbers are cosines; "
    "✓ marks a right answer. The small picture before a caption is the one it should have found among the five."
)


def write_report(
    run_dir: str | Path, model: Any, tokenizer: Any, config: Any, chance_loss: float | None = None
) -> Path:
    """Write RUN/report.html, one file without any outside resource, and return its path.

    Args:
        run_dir: the run's folder; metrics.jsonl, eval.json, environment.json, init_report.json and config.yaml in it
            are shown where present.
        model, tokenizer: the trained ones, whole on this process: this is not collective, call it on one rank.
        config: the run's configuration; its `eval` section names the sets whose pictures are shown. The retrieval
            numbers on the page are computed here, from the very features that the shown pictures were ranked with.
        chance_loss: the loss of a model that knows nothing, a line beside its curve; None draws none.
    """
    run = Path(run_dir)
    history = read_history(run / "metrics.jsonl")
    recorded = facts.read_json(run / "environment.json")
    embedded, problems = _embed_all(model, tokenizer, config.eval)
    numbers = {one.name: retrieval_metrics(one) for one in embedded}
    zero_shot = _zero_shot_numbers(run, history, config.eval)
    drawn = [draw(chart) for chart in charts(history, chance_loss)]
    sections = [
        headline(numbers, zero_shot),
        section("Results", "results", retrieval_table(numbers), zero_shot_table(zero_shot), *problems),
        section("Training", "training", _charts(drawn), note="Over optimizer steps. Beside each name, its last value."),
        *(_gallery(one, number) for number, one in enumerate(embedded)),
        section(
            "Run it again",
            "command",
            facts.command(recorded),
            facts.initialisation(facts.read_json(run / "init_report.json")),
            facts.configuration(run / "config.yaml"),
        ),
        section("Machine", "machine", facts.environment(recorded)),
        section("Pictures and captions", "attribution", facts.attribution(_data_folders(config))),
    ]
    lead = f'<p class="lead">{escape(_summary(model, config, history))}</p>'
    footer = "Written by clipkit. This page holds everything it shows and asks no server for anything."
    return write_page(run / "report.html", page(run.resolve().name, "Training report", lead, sections, footer))


def _embed_all(model: Any, tokenizer: Any, config: Any) -> tuple[list[EmbeddedSet], list[str]]:
    """The retrieval sets that can be read. One that has gone does not take the others' page with it."""
    embedded, problems = [], []
    for entry in config.retrieval:
        try:
            embedded.append(embed_retrieval_set(model, tokenizer, entry, batch_size=config.batch_size))
        except FileNotFoundError as error:
            logger.warning("the report leaves out %s: %s", entry.name, error)
            problems.append(f'<p class="remark">{escape(entry.name)} is missing: {escape(str(error))}</p>')
    if not config.retrieval and not config.zero_shot:
        problems.append('<p class="remark">The configuration names no evaluation set.</p>')
    return embedded, problems


def _zero_shot_numbers(run: Path, history: History, config: Any) -> dict[str, dict[str, float]]:
    """Of each zero-shot set what was evaluated last: eval.json, else the last evaluation logged."""
    final = facts.read_json(run / "eval.json")
    last = final.get("metrics", final) or (history.evaluations[-1] if history.evaluations else {})
    values: Mapping[str, Any] = last.get("metrics", last)
    found = {
        entry.name: {key.partition("/")[2]: value for key, value in values.items() if key.startswith(f"{entry.name}/")}
        for entry in config.zero_shot
    }
    return {name: numbers for name, numbers in found.items() if "top@1" in numbers}


def _gallery(embedded: EmbeddedSet, number: int) -> str:
    read = _reader(embedded)
    to_captions, to_pictures = pictures_to_captions(embedded, read), captions_to_pictures(embedded, read)
    if not to_captions:
        return ""
    return section(
        f"What it retrieves: {embedded.name}",
        f"retrieves-{number}",
        f"<h3>Pictures, and their {NEAREST} nearest captions of {len(embedded.captions):,}</h3>{to_captions}",
        f"<h3>Captions, and their {NEAREST} nearest pictures of {len(embedded.images):,}</h3>{to_pictures}",
        note="" if number else _CHOICE,
    )


def _reader(embedded: EmbeddedSet) -> Callable[[int], bytes]:
    from clipkit.data import open_dataset

    dataset = open_dataset(embedded.folder)
    return lambda index: bytes(dataset.read(index).image_bytes)


def _charts(drawn: list[str]) -> str:
    present = "".join(drawn)
    return f'<div class="charts">{present}</div>' if present else ""


def _summary(model: Any, config: Any, history: History) -> str:
    """One sentence: which model, how long, on how much."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    said = [f"{config.model.name}, {parameters / 1e6:,.1f} million parameters"]
    steps = history.last.get("step")
    if steps:
        pairs = int(steps) * config.train.global_batch
        said.append(f"{int(steps):,} steps of {config.train.global_batch:,} pairs ({pairs:,} pairs seen)")
    seconds = history.last.get("seconds")
    if isinstance(seconds, int | float):
        said.append(f"trained in {duration(seconds)}")
    return "; ".join(said) + "."


def duration(seconds: float) -> str:
    """48 s, 5 min 41 s, 3 h 02 min; never broken over two lines."""
    whole = round(seconds)
    if whole < 60:
        words = f"{whole} s"
    elif whole < 3600:
        words = f"{whole // 60} min {whole % 60:02d} s"
    else:
        words = f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def _data_folders(config: Any) -> list[Path]:
    sources = [config.data.train, *(entry.data for entry in (*config.eval.retrieval, *config.eval.zero_shot))]
    return [Path(source) for source in sources]
