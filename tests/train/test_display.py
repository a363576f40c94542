# SPDX-License-Identifier: Apache-2.0
"""What a person and a tracker see of a run."""

from __future__ import annotations

import io
import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from clipkit.train import metrics
from clipkit.train.metrics import MetricsFile
from clipkit.train.progress import Progress, ProgressAwareHandler, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


FACTS = {"loss": 1.25, "samples_per_second": 1234.5, "eta_seconds": 3725}


def test_a_terminal_gets_one_line_that_redraws_itself(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    progress = Progress(100, stream)
    progress.update(50, **FACTS)
    progress.update(51, **FACTS)  # a moment later: not drawn again
    assert stream.getvalue().count("\r") == 1
    assert "\n" not in stream.getvalue()
    assert "step 50/100  loss 1.2500  1,234 samples/s  ETA 1:02:05" in stream.getvalue()
    progress.update(100, **FACTS)
    assert "step 100/100" in stream.getvalue(), "the end is always drawn"


def test_a_file_gets_plain_lines_seldom():
    stream = io.StringIO()
    progress = Progress(100, stream)
    for step in range(1, 101):
        progress.update(step, **FACTS)
    progress.clear()
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == ["step 1/100", "step 100/100"]


def test_log_lines_clear_the_bar_first():
    stream = Terminal()
    handler = ProgressAwareHandler(stream)
    handler.emit(logging.LogRecord("clipkit", logging.INFO, "", 0, "checkpoint", (), None))
    assert stream.getvalue() == "\r\x1b[2Kcheckpoint\n"


def test_durations():
    assert [duration(seconds) for seconds in (-1, 59.6, 61, 3600)] == ["0:00", "1:00", "1:01", "1:00:00"]


def test_metrics_are_json_even_when_numbers_are_not(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append("train", 1, {"loss": float("nan"), "losses": {"a": float("inf")}, "lr": 0.5})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"kind": "train", "step": 1, "loss": None, "losses": {"a": None}, "lr": 0.5}


def test_rewinding_keeps_each_step_once_and_drops_a_line_cut_off_by_a_kill(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.rewind(5) == -1
    for step in range(1, 8):
        file.append("train", step, {"loss": 1.0})
    file.append("eval", 4, {"metrics": {}})
    file.append("eval", 6, {"metrics": {}})
    file.append("event", 7, {"event": "preempted"})
    with file.path.open("a") as stream:
        stream.write('{"kind": "train", "st')
    assert file.rewind(5) == 4
    kept = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in kept] == [
        *(("train", step) for step in range(1, 6)),
        ("eval", 4),
        ("event", 7),
    ]


@pytest.fixture
def fake_wandb(monkeypatch):
    module = ModuleType("wandb")
    module.calls = []
    module.util = SimpleNamespace(generate_id=lambda: "abc")
    module.init = lambda **arguments: (
        module.calls.append(arguments)
        or SimpleNamespace(
            log=lambda values, step: module.calls.append((step, values)), finish=lambda: module.calls.append("finish")
        )
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_continues_the_same_run_after_a_resume(tmp_path, fake_wandb):
    for _ in range(2):
        (tracker,) = metrics.open_trackers(["wandb"], tmp_path, {"a": 1})
        tracker.log(3, {"train/loss": 1.0})
        tracker.close()
        fake_wandb.util.generate_id = lambda: "another"
    starts = [call for call in fake_wandb.calls if isinstance(call, dict)]
    assert [start["id"] for start in starts] == ["abc", "abc"]
    assert (3, {"train/loss": 1.0}) in fake_wandb.calls


def test_tensorboard_gets_scalars(tmp_path, monkeypatch):
    written = []
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: SimpleNamespace(
        add_scalar=lambda *arguments: written.append(arguments), close=lambda: written.append("closed")
    )
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    (tracker,) = metrics.open_trackers(["tensorboard"], tmp_path, {})
    tracker.log(2, metrics.flatten({"loss": 1.0, "losses": {"clip": 0.5}, "note": "text"}, "train"))
    tracker.close()
    assert written == [("train/loss", 1.0, 2), ("train/losses/clip", 0.5, 2), "closed"]
