# SPDX-License-Identifier: Apache-2.0
"""Every data set that a run's configuration names, one after another: what the trainer and `clipkit eval` call."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.errors import value_error
from clipkit.evaluate.embed import ImageEmbeddings, embed_images, embed_texts
from clipkit.evaluate.ranking import retrieval
from clipkit.evaluate.sharding import Shards
from clipkit.evaluate.zeroshot import DEFAULT_TEMPLATES, text_classifier, zero_shot

logger = logging.getLogger(__name__)


@dataclass
class EmbeddedSet:
    """One retrieval set embedded: this rank's pictures, and every candidate caption on every rank.

    `positives[i]` lists the right captions of this rank's i-th picture. `folder` is where the pictures come from.
    """

    name: str
    folder: Path
    images: ImageEmbeddings
    captions: list[str]
    caption_features: Tensor
    positives: list[list[int]]


def evaluate_run(
    model: Any,
    tokenizer: Any,
    config: Any,
    *,
    runtime: Any = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Evaluate `model` on every retrieval and zero-shot set of `config` (the `eval` section of a run's configuration).

    Args:
        model, tokenizer: what `clipkit.train.load_run` returns.
        config: a `clipkit.train.EvalConfig`: `retrieval` sets, `zero_shot` sets, `batch_size`.
        runtime: the trainer's; its `group` shares the work. None: all ranks once torch.distributed is initialised.
        should_stop: asked before each data set; must answer the same on every rank. True ends the evaluation with
            what it has.

    Returns:
        Fractions of 1, such as `seen/image_to_text/R@1`, `seen/text_to_image/chance_R@5`, `birds/top@1`, and numbers
        of pictures: `{name}/skipped` (broken) and `{name}/unanswered` (without a right answer among the candidates).
        Equal on every rank.
    """
    group = _world() if runtime is None else runtime.group
    metrics: dict[str, float] = {}
    jobs: list[tuple[Any, Callable[..., dict[str, float]]]] = [
        *((entry, _evaluate_retrieval) for entry in config.retrieval),
        *((entry, _evaluate_zero_shot) for entry in config.zero_shot),
    ]
    for entry, evaluate in jobs:
        if should_stop is not None and should_stop():
            logger.info("evaluation stops before %s, as asked", entry.name)
            break
        found = evaluate(model, tokenizer, entry, config.batch_size, group)
        metrics.update({f"{entry.name}/{key}": value for key, value in found.items()})
    return metrics


def embed_retrieval_set(
    model: Any, tokenizer: Any, entry: Any, *, batch_size: int = 256, group: dist.ProcessGroup | None = None
) -> EmbeddedSet:
    """Embed one retrieval set: its pictures and its candidate captions.

    Candidates are the lines of `entry.captions`, or without it the data set's own different captions in the data
    set's order. A picture with a list `captions` in its metadata has all of those as right answers, any other its one
    caption.
    """
    images = embed_images(model, _open(entry.data), batch_size=batch_size, group=group)
    answers = [_answers(caption, metadata) for caption, metadata in zip(images.captions, images.metadata, strict=True)]
    if entry.captions:
        captions = read_lines(entry.captions, "captions")
    else:
        lines = [json.dumps([number, own]) for number, own in zip(images.ids, answers, strict=True)]
        everyone = sorted(json.loads(line) for line in Shards(group).gather_lines(lines, images.features.device))
        captions = list(dict.fromkeys(caption for _, own in everyone for caption in own))
    index = {caption: position for position, caption in enumerate(captions)}
    return EmbeddedSet(
        name=entry.name,
        folder=Path(entry.data),
        images=images,
        captions=captions,
        caption_features=embed_texts(model, tokenizer, captions, batch_size=batch_size, group=group),
        positives=[[index[caption] for caption in own if caption in index] for own in answers],
    )


def retrieval_metrics(embedded: EmbeddedSet, *, group: dist.ProcessGroup | None = None) -> dict[str, float]:
    """Recalls, chance levels and counts of one embedded set; ValueError where not one picture has a right answer."""
    missing = [row for row, own in enumerate(embedded.positives) if not own]
    images = embedded.images
    counts = _shared_counts([len(images), sum(images.skipped.values()), len(missing)], images, group)
    if counts[2] == counts[0]:
        raise value_error(
            f"eval set {embedded.name!r}",
            got=f"{counts[0]} readable pictures, none with a caption among the {len(embedded.captions)} candidates",
            want="at least one",
            fix="check its data and captions entries",
        )
    if missing:
        first = images.captions[missing[0]]
        logger.warning("%s: %d pictures have no right caption, first %r", embedded.name, len(missing), first)
    found = retrieval(images.features, embedded.caption_features, embedded.positives, group=group)
    return {**found, "skipped": float(counts[1]), "unanswered": float(counts[2])}


def read_lines(path: str | Path, argument: str) -> list[str]:
    """The different non-empty lines of a UTF-8 text file, in order."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{argument}: no file {path}; want one entry per line; name an existing text file")
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    found = list(dict.fromkeys(line for line in lines if line))
    if not found:
        raise value_error(argument, got=f"{path} without a line", want="one entry per line", fix="fill the file")
    return found


def _evaluate_retrieval(
    model: Any, tokenizer: Any, entry: Any, batch_size: int, group: dist.ProcessGroup | None
) -> dict[str, float]:
    return retrieval_metrics(
        embed_retrieval_set(model, tokenizer, entry, batch_size=batch_size, group=group), group=group
    )


def _evaluate_zero_shot(
    model: Any, tokenizer: Any, entry: Any, batch_size: int, group: dist.ProcessGroup | None
) -> dict[str, float]:
    names = _lines_or_list(entry.classes, "classes")
    templates = _lines_or_list(entry.templates, "templates") if entry.templates else DEFAULT_TEMPLATES
    classifier = text_classifier(model, tokenizer, names, templates, batch_size=batch_size, group=group)
    images = embed_images(model, _open(entry.data), batch_size=batch_size, group=group)
    index = {name: position for position, name in enumerate(names)}
    labels = [
        _label(caption, metadata, index) for caption, metadata in zip(images.captions, images.metadata, strict=True)
    ]
    kept = [row for row, label in enumerate(labels) if label is not None]
    counts = _shared_counts([len(images), sum(images.skipped.values()), len(labels) - len(kept)], images, group)
    if counts[2] == counts[0]:
        raise value_error(
            f"eval set {entry.name!r}",
            got=f"{counts[0]} readable pictures, none of one of the {len(names)} classes",
            want="a metadata field 'class' or 'label', or a caption, that is a class name or its number",
            fix="check its data and classes entries",
        )
    known = torch.tensor([labels[row] for row in kept], dtype=torch.int64)
    found = zero_shot(images.features[kept], known, classifier, group=group)
    return {**found, "skipped": float(counts[1]), "unanswered": float(counts[2])}


def _label(caption: str, metadata: dict[str, Any], index: dict[str, int]) -> int | None:
    """A picture's class: its metadata's `class`, else `label`, else its caption; a number, or one of the names."""
    own = metadata.get("class", metadata.get("label", caption))
    if isinstance(own, int) and not isinstance(own, bool):
        return own if 0 <= own < len(index) else None
    return index.get(str(own).strip())


def _answers(caption: str, metadata: dict[str, Any]) -> list[str]:
    several = metadata.get("captions")
    if isinstance(several, list) and several and all(isinstance(one, str) for one in several):
        return [one.strip() for one in several]
    return [caption.strip()]


def _lines_or_list(entry: str | Sequence[str], argument: str) -> list[str]:
    return read_lines(entry, argument) if isinstance(entry, str) else list(entry)


def _shared_counts(counts: list[int], images: ImageEmbeddings, group: dist.ProcessGroup | None) -> list[int]:
    """Added over ranks first: every rank comes to the same verdict, none is left waiting for one that raised."""
    return [int(count) for count in Shards(group).sum(torch.tensor(counts, device=images.features.device))]


def _open(data: str | Path) -> Any:
    from clipkit.data import open_dataset

    return open_dataset(data)


def _world() -> dist.ProcessGroup | None:
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
