# SPDX-License-Identifier: Apache-2.0
"""One step of LAMB on a model's parameters: the CPU's two passes beside plain torch, timm's and pytorch-optimizer's.

    python -m bench.lamb --model ViT-B-32

All update the same weights from the same gradients, in turns, in one process: random ones, of the model's shapes, in
fp32, with torch's number of threads (OMP_NUM_THREADS). Before anything is timed, a step of every side that follows
clipkit's rule must equal a step in float64. Beside them AdamW, which has no norms to wait for, and the floor: the bytes
that two passes have to move (40 a parameter), at the rate at which torch scales as many numbers in place. "by layers"
is the same step in the groups of EVA-CLIP's layer decay, which has each tower's layers at rates of their own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench import record
from bench.peers import import_peer
from clipkit import create_model
from clipkit.optim import Lamb, TowerOptions, parameter_groups

BYTES = 40
SCALING_BYTES = 8
RATE, DECAY, BETAS, EPS = 1e-4, 0.05, (0.9, 0.98), 1e-6
LAYERS = {"image": TowerOptions(layer_decay=0.75), "text": TowerOptions(layer_decay=0.7)}
SAME_RULE = ("clipkit cpu", "clipkit torch", "timm")

Step = Callable[[], object]


def main() -> None:
    """Check, measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    named = parameters_like(options.model)
    count = sum(parameter.numel() for _, parameter in named)
    sides = build(named)
    check(sides)
    numbers = torch.zeros(count)
    steps: dict[str, Step] = {name: optimizer.step for name, optimizer in sides.items()}
    steps["scaling"] = lambda: numbers.mul_(0.5)
    seconds = record.interleaved(steps, options.repeats)
    floor = statistics.median(seconds.pop("scaling")) * BYTES / SCALING_BYTES
    rows = []
    for name, times in seconds.items():
        ratios = [other / ours for other, ours in zip(times, seconds["clipkit cpu"], strict=True)]
        ratio = record.summary(ratios)
        rows.append({"side": name, "seconds": record.summary(times), "times clipkit cpu": ratio})
        print(f"{name:24} {statistics.median(times) * 1e3:8.1f} ms  {ratio['median']:5.2f} x clipkit cpu", end="")
        print(f"  [{ratio['min']:.2f}, {ratio['max']:.2f}]")
    print(f"{'floor':24} {floor * 1e3:8.1f} ms: {BYTES} bytes for each of {count / 1e6:.1f}M parameters")
    body = {"model": options.model, "parameters": count, "tensors": len(named), "floor_seconds": floor, "rows": rows}
    print(record.write(f"lamb-{options.model}", f"python -m bench.lamb --model {options.model}", body))


def parameters_like(model: str) -> list[tuple[str, nn.Parameter]]:
    """Random weights and gradients of a model's names and shapes."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in create_model(model).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    named = []
    for name, shape in shapes.items():
        parameter = nn.Parameter(torch.randn(shape, generator=generator) * 0.02)
        parameter.grad = torch.randn(shape, generator=generator) * 1e-3
        named.append((name, parameter))
    return named


def build(named: list[tuple[str, nn.Parameter]]) -> dict[str, Any]:
    """Optimizers of these parameters; those whose state is alike share it, so that all fit in 5 GB."""

    def groups(towers: dict[str, TowerOptions] | None = None) -> list[dict[str, Any]]:
        return parameter_groups(named, lr=RATE, weight_decay=DECAY, towers=towers)

    common: dict[str, Any] = {"lr": RATE, "betas": BETAS, "eps": EPS}
    sides: dict[str, Any] = {
        "clipkit cpu": Lamb(groups(), **common, backend="cpu"),
        "clipkit cpu, by layers": Lamb(groups(LAYERS), **common, backend="cpu"),
        "clipkit torch": Lamb(groups(), **common, backend="torch"),
        "AdamW": torch.optim.AdamW(groups(), **common, fused=True),
        "AdamW, by layers": torch.optim.AdamW(groups(LAYERS), **common, fused=True),
    }
    for optimizer in sides.values():
        optimizer.state = sides["clipkit cpu"].state
    for name, distribution, settings in (
        ("timm", "timm.optim", {"max_grad_norm": None}),
        ("pytorch-optimizer", "pytorch_optimizer", {"max_grad_norm": 0.0, "weight_decouple": False}),
    ):
        try:
            library: Any = import_peer(distribution)
        except Exception as error:  # a peer that cannot be imported is a row less, whatever it raises
            print(f"{name}: not measured ({type(error).__name__}: {error})")
            continue
        sides[name] = library.Lamb(groups(), **common, **settings)
    return sides


def check(sides: dict[str, Any]) -> None:
    """The first step of each side that claims clipkit's rule, against float64, on the largest and the last matrix.

    Raises:
        AssertionError: it is another step.
    """
    tensors = list(sides["clipkit cpu"].param_groups[0]["params"])
    watched = [max(tensors, key=lambda tensor: tensor.numel()), tensors[-1]]
    before = [tensor.detach().clone() for tensor in watched]
    for name in SAME_RULE:
        if name not in sides:
            continue
        optimizer = sides[name]
        optimizer.state.clear()
        optimizer.step()
        for tensor, start in zip(watched, before, strict=True):
            assert tensor.grad is not None
            weight, gradient = start.double(), tensor.grad.double()
            update = gradient / (gradient.abs() + EPS) + DECAY * weight
            wanted = weight - RATE * weight.norm() / update.norm() * update
            torch.testing.assert_close(tensor.detach().double(), wanted, rtol=1e-5, atol=1e-8, msg=name)
            tensor.data.copy_(start)


if __name__ == "__main__":
    main()
