# SPDX-License-Identifier: Apache-2.0
"""Samples per second of the steps that bench.evaclip compares, taken in turns in one process.

Every variant trains a model of its own on the same batches, a step each and round again, on one thread. What a busy
machine takes it takes from all alike: compare ratios to the recipe, and only these. The padded variant has the text
tower compute on every row's whole context, as open_clip's does, and must have the losses of the packed one.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import types
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.evaclip_methods import PRETRAINING, RECIPE, VARIANTS
from bench.padded_text import encode_padded_text
from clipkit.data import Batch
from clipkit.train.build import build_session
from clipkit.train.config import load_config
from clipkit.train.runtime import Runtime
from clipkit.train.session import Session

WARM_UP = 3
TITLES = {
    "recipe": "the recipe",
    "padded": "padded text",
    "patches": "all patches",
    "adamw": "AdamW",
    "pre-training": "the pre-training",
}


def measure(emoji: Path, repeats: int) -> dict[str, Any]:
    """Steps of every variant in turns: how many times slower than the recipe's each is, and how far the padded
    variant's losses are from the packed one's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sessions = {name: _session(emoji, name) for name in TITLES}
        batches = {name: _batches(session, WARM_UP + repeats) for name, session in sessions.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sessions}
        losses: dict[str, list[float]] = {name: [] for name in sessions}
        for number in range(WARM_UP + repeats):
            for name, session in sessions.items():
                start = time.perf_counter()
                losses[name].append(float(session.train_step(batches[name][number], number).loss))
                seconds[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {
        "steps": repeats,
        "threads": 1,
        "batch": sessions["recipe"].config.train.global_batch,
        "text": _lengths(batches["recipe"]),
        "samples per second": {name: _speed(sessions[name], one[WARM_UP:]) for name, one in seconds.items()},
        "times the recipe's step": {
            name: record.summary(_ratios(one[WARM_UP:], seconds["recipe"][WARM_UP:])) for name, one in seconds.items()
        },
        "padded less packed": {
            "compared": len(losses["padded"]),
            "difference": max(abs(a - b) for a, b in zip(losses["padded"], losses["recipe"], strict=True)),
            "last": losses["recipe"][-1],
        },
    }


def _session(emoji: Path, name: str) -> Session:
    recipe = PRETRAINING if name == "pre-training" else RECIPE
    words = VARIANTS[name].words() if name in VARIANTS else []
    start = [] if name == "pre-training" else ["model.init.image=null", "eval.retrieval=[]"]
    config = load_config(recipe, [f"data.train={emoji / 'train'}", *words, *start])
    session = build_session(config, Runtime(), Path(tempfile.gettempdir()) / "never written")
    if name == "padded":
        model: Any = session.module
        model.encode_text = types.MethodType(encode_padded_text, model)
    return session


def _batches(session: Session, count: int) -> list[Batch]:
    return list(islice(session.batches(), count))


def _lengths(batches: Sequence[Batch]) -> dict[str, float]:
    """How long the captions are, start and end tokens included."""
    lengths = torch.cat([batch.tokens.argmax(dim=1) + 1 for batch in batches]).double()
    return {"mean": lengths.mean().item(), "context": batches[0].tokens.shape[1]}


def _ratios(mine: Sequence[float], base: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(mine, base, strict=True)]


def _speed(session: Session, seconds: Sequence[float]) -> float:
    return session.config.train.global_batch / statistics.median(seconds)
