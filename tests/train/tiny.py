# SPDX-License-Identifier: Apache-2.0
"""A set of coloured pictures with captions, a model of a few thousand parameters, and runs of both."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from clipkit.data import Sample, write_shards

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 210), "grey": (120, 120, 120)}
SHAPES = ("box", "bar", "stripe", "dot")

# Small, but with everything that can differ between ranks and resumes: both towers, decay groups, a scale.
MODEL = {
    "embed_dim": 16,
    "vision.width": 16,
    "vision.layers": 1,
    "vision.head_width": 8,
    "vision.patch_size": 8,
    "text.width": 16,
    "text.heads": 2,
    "text.layers": 1,
    "text.vocab_size": 600,
    "text.context_length": 24,
}


def build_set(folder: Path, count: int = 48, *, uneven: bool = False) -> Path:
    """Write `count` 32-pixel pictures under folder/train, and their captions in folder/captions.txt.

    `uneven` cuts captions to between one letter and all, so that equal numbers of rows are unequal numbers of tokens.
    """
    from PIL import Image

    captions, samples = [], []
    for number in range(count):
        colour, rgb = list(COLOURS.items())[number % len(COLOURS)]
        shape = SHAPES[number // len(COLOURS) % len(SHAPES)]
        picture = Image.new("RGB", (32, 32), "white")
        left = 2 + number % 7
        box = {"box": (left, 4, 24, 28), "bar": (left, 2, left + 6, 30), "stripe": (2, left, 30, left + 6)}
        picture.paste(rgb, box.get(shape, (12, 12, 20, 20)))
        content = io.BytesIO()
        picture.save(content, "png")
        caption = f"a {colour} {shape} number {number}"
        if uneven:
            caption = caption[: 1 + number * 7 % len(caption)]
        captions.append(caption)
        samples.append(Sample(f"{number:04d}", content.getvalue(), caption, {"tags": [colour, shape]}))
    write_shards(folder / "train", samples, shard_size=20)
    (folder / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    return folder / "train"


def settings(data: Path, out: Path, **changes: object) -> dict[str, object]:
    """A run's configuration as nested plain values; `changes` are `section__key=value`."""
    tree: dict[str, dict[str, object]] = {
        "model": {"name": "vit-tiny-32px", "overrides": dict(MODEL)},
        "data": {"train": str(data), "tags": [0, 1]},
        "optim": {"lr": 3e-3, "weight_decay": 0.1, "grad_clip": 1.0, "schedule": {"warmup_steps": 3}},
        "train": {"global_batch": 12, "steps": 8, "log_every": 1, "save_every": 0, "seed": 5},
        "output": {"dir": str(out)},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return dict(tree)


def write_config(path: Path, tree: dict[str, object]) -> Path:
    """YAML is a superset of JSON."""
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def losses(run: Path) -> dict[int, float]:
    """Loss by step; each step must be there once."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    assert len(dict(found)) == len(found), "a step is in metrics.jsonl twice"
    return dict(found)


def environment() -> dict[str, str]:
    """One thread per process, whatever pytest itself was started with."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(config: Path, *arguments: str, ranks: int = 1) -> list[str]:
    """The `clipkit train` command line, under torchrun for several ranks."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *launcher, "-m", "clipkit", "train", "--config", str(config), *arguments]


def clipkit_train(config: Path, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run it to the end."""
    return subprocess.run(
        command(config, *arguments, ranks=ranks), env=environment(), capture_output=True, text=True, timeout=300
    )


def build_broken_set(folder: Path, count: int = 48) -> Path:
    """As `build_set`, with every third picture no picture at all, under folder/train."""
    from PIL import Image

    samples = []
    for number in range(count):
        content = io.BytesIO()
        Image.new("RGB", (32, 32), (number * 5, 255 - number * 5, 90)).save(content, "png")
        image = b"no picture" if number % 3 == 0 else content.getvalue()
        samples.append(Sample(f"{number:04d}", image, f"colour number {number}"))
    write_shards(folder / "train", samples)
    return folder / "train"


def checkpoint_tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything a checkpoint holds: weights, and the optimizer's averages, which hold the gradients."""
    from clipkit.train import dcp

    path = run / "checkpoints" / f"step-{step:08d}"
    entries = dcp.SafeReader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    dcp.load_tensors(tensors, path, None)
    return tensors


def run_on_ranks(world_size: int, jobs: list[dict[str, Any]], store: Path) -> None:
    """Train each job's `tree` on gloo ranks of one process group, one after another.

    A job may name a `stop` (rank, step): that rank, and no other, gets SIGTERM there; and a checkpoint to `resume`
    from. The endings are written to store/endings-RANK.json.
    """
    torch.multiprocessing.spawn(_rank, (world_size, jobs, str(store)), nprocs=world_size)


def _rank(rank: int, world_size: int, jobs: list[dict[str, Any]], store: str) -> None:
    import torch.distributed as dist

    import clipkit.report
    from clipkit.train import parse_config, train
    from clipkit.train.session import Session

    torch.set_num_threads(1)
    clipkit.report.write_report = lambda run, *_: run / "report.html"
    show, endings, stop = Session.show, [], [None, None]

    def and_stop(self: Session, **facts: float) -> None:
        show(self, **facts)
        if stop == [rank, self.position.step]:
            os.kill(os.getpid(), signal.SIGTERM)

    Session.show = and_stop  # type: ignore[method-assign]
    dist.init_process_group("gloo", init_method=f"file://{store}/rendezvous", rank=rank, world_size=world_size)
    for job in jobs:
        stop[:] = job.get("stop", [None, None])
        endings.append(train(parse_config(job["tree"]), resume=job.get("resume", "auto")).name)
    (Path(store) / f"endings-{rank}.json").write_text(json.dumps(endings))
    dist.destroy_process_group()
