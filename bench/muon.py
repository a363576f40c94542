# SPDX-License-Identifier: Apache-2.0
"""clipkit's Muon beside torch.optim.Muon in the steps of the demo, on processors with and without 16-bit products.

    python -m bench.muon --emoji data/emoji

The rule is one: Nesterov momentum, five rounds of the same Newton-Schulz iteration, the rate times
max(1, rows / columns)^0.5, decoupled weight decay. torch's iterates matrix by matrix in bfloat16 and takes no
convolution kernel (the demo's two go to AdamW then); clipkit's iterates all matrices of a shape at once in float32.

Two models with the same initial weights train on the same batches, in turns, in one process; a process for each limit
on the instructions that oneDNN may use for products. A limit stands for older processors: AVX512_CORE and AVX2 have no
bfloat16 (AVX2 is what many laptops have). It does not make a processor of this one: compare ratios, and only these.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch

from bench import record
from clipkit.data import Batch
from clipkit.train.build import build_session
from clipkit.train.config import OptimConfig, load_config
from clipkit.train.runtime import Runtime
from clipkit.train.step import TrainStep

CONFIG = "demo.yaml"
LIMITS = {"none": "DEFAULT", "no bf16": "AVX512_CORE", "no AVX-512": "AVX2"}
WARM_UP = 3


class TorchMuon:
    """torch.optim.Muon for the matrices of "muon" groups and AdamW for all else: what a TrainStep asks of an optimizer.

    Both optimizers keep the group objects that they are given, so that a schedule that writes a group's rate is heard.
    """

    def __init__(self, groups: list[MutableMapping[str, Any]], settings: OptimConfig) -> None:
        matrices, rest = [], []
        for group in groups:
            two = [parameter for parameter in group["params"] if group.get("muon") and parameter.ndim == 2]
            others = [parameter for parameter in group["params"] if not group.get("muon") or parameter.ndim != 2]
            common = {"weight_decay": group["weight_decay"]}
            if two:
                matrices.append({**common, "params": two, "lr": settings.muon.lr, "peak_lr": settings.muon.lr})
            if others:
                rest.append({**common, "params": others, "lr": settings.lr, "peak_lr": settings.lr})
        muon = settings.muon
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, momentum=muon.momentum, ns_steps=muon.iterations),
            torch.optim.AdamW(rest, betas=settings.betas, eps=settings.eps, fused=True),
        ]
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Both update their parameters."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Both forget their gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)


def main() -> None:
    """Measure in a child process for each limit; print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, default=Path("data/emoji"), help="what `clipkit data emoji` built")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.emoji, options.steps)))
        return
    cases = {}
    for name, limit in LIMITS.items():
        command = [sys.executable, "-m", "bench.muon", "--child", "--emoji", options.emoji, "--steps", options.steps]
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": limit}
        done = subprocess.run(list(map(str, command)), env=environment, check=True, stdout=subprocess.PIPE, text=True)
        cases[name] = {"ONEDNN_MAX_CPU_ISA": limit, **json.loads(done.stdout.splitlines()[-1])}
        step, loss = cases[name]["step: torch / clipkit"], cases[name]["loss"]
        print(f"{name:12} a step with torch's / with clipkit's: {step['median']:.2f} [{step['min']:.2f}, ", end="")
        print(f"{step['max']:.2f}]; losses {loss}")
    print(record.write("muon", f"python -m bench.muon --steps {options.steps}", {"limits": cases}))


def measure(emoji: Path, steps: int) -> dict[str, Any]:
    """Train both for `steps` steps; ratios of the times of whole steps and of the optimizers alone, last losses."""
    config = load_config(CONFIG, [f"data.train={emoji / 'train'}", "eval.retrieval=[]"])
    sessions = {
        name: build_session(config, Runtime(), Path(tempfile.gettempdir()) / "never written") for name in ("c", "t")
    }
    clipkit_step, torch_step = (session.train_step for session in sessions.values())
    groups: Any = torch_step.optimizer.param_groups
    torch_step = TrainStep(
        torch_step.recipe,
        torch_step.module,
        TorchMuon(groups, config.optim),  # type: ignore[arg-type]
        config,
        torch_step.runtime,
        precision=torch_step.precision,
        total_steps=torch_step.total_steps,
    )
    whole, alone, losses = [], [], []
    for number, batch in zip(range(steps), sessions["c"].loader.batches(0), strict=False):
        ours, theirs = (timed_step(step, batch.to("cpu"), number) for step in (clipkit_step, torch_step))
        losses.append((ours["loss"], theirs["loss"]))
        if number >= WARM_UP:
            whole.append(theirs["step"] / ours["step"])
            alone.append(theirs["optimizer"] / ours["optimizer"])
    last = losses[-max(1, steps // 5) :]
    return {
        "step: torch / clipkit": record.summary(whole),
        "optimizer: torch / clipkit": record.summary(alone),
        "loss": {
            "mean over the last steps": len(last),
            "clipkit": statistics.fmean(ours for ours, _ in last),
            "torch": statistics.fmean(theirs for _, theirs in last),
        },
    }


def timed_step(step: TrainStep, batch: Batch, number: int) -> dict[str, float]:
    """Loss and seconds of one training step, and the seconds of the optimizer within it."""
    spent = 0.0
    update = step.optimizer.step

    def timed_update() -> None:
        nonlocal spent
        start = time.perf_counter()
        update()
        spent = time.perf_counter() - start

    step.optimizer.step = timed_update  # type: ignore[method-assign, assignment]
    start = time.perf_counter()
    loss = float(step(batch, number).loss)
    seconds = time.perf_counter() - start
    step.optimizer.step = update  # type: ignore[method-assign]
    return {"loss": loss, "step": seconds, "optimizer": spent}


if __name__ == "__main__":
    main()
