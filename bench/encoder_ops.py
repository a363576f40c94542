# SPDX-License-Identifier: Apache-2.0
"""The fused operations of an encoder beside plain torch and torch.compile: EVA02-B-16's shapes, forward and backward.

    python -m bench.encoder_ops

Ways: "eager" is the operation as models usually write it, "compiled" the same function by torch.compile, and the rest
are clipkit's operators on each backend of the device, or its attention, which has no backends. They take turns in one
process. "floor ms" is what the bytes that cannot be avoided take at the rate of a copy of as many, measured in the
same turns.

Whether a backend deserves an operation of its own is read off its ratios to eager and compiled, both passes together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import record
from bench.clocks import clock_for
from clipkit.encoders import fused
from clipkit.encoders.attention.sdpa import scaled_dot_product_attention
from clipkit.engine import dispatch

TOKENS, GRID, HEADS, HEAD_WIDTH, WIDTH, HIDDEN, EPS = 197, 14, 12, 64, 768, 2048, 1e-6
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Function = Callable[..., tuple[Tensor, ...]]


class Operation(NamedTuple):
    """One operation: as models write it, ours, what has a gradient and what has none, and whether backends run it."""

    eager: Function
    ours: Callable[..., Any]
    inputs: list[Tensor]
    constants: list[Tensor]
    dispatched: bool = True


def rotate_eager(query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, ...]:
    """As EVA-CLIP and timm write it: tables of both channels of a pair, the rotated half stacked, the class token put
    back in front."""
    cosine, sine = (table.repeat_interleave(2, -1).unsqueeze(1) for table in (cosines, sines))

    def turned(tokens: Tensor) -> Tensor:
        rest = tokens[:, 1:]
        other = torch.stack((-rest[..., 1::2], rest[..., ::2]), -1).flatten(-2)
        return torch.cat((tokens[:, :1], (rest * cosine + other * sine).to(tokens.dtype)), 1)

    return turned(query), turned(key)


def swiglu_norm_eager(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Activation, product and norm."""
    return (F.layer_norm(F.silu(gate) * value, weight.shape, weight, bias, EPS),)


def add_norm_eager(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Sum and norm."""
    total = x + branch
    return total, F.layer_norm(total, weight.shape, weight, bias, EPS)


def add_post_norm_eager(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Norm and sum."""
    return (x + F.layer_norm(branch, weight.shape, weight, bias, EPS),)


def operations(pictures: int, dtype: torch.dtype, device: str) -> dict[str, Operation]:
    """Of a batch of pictures, in slices of one projection's output where models have them so."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    def vectors(width: int) -> list[Tensor]:
        return [random(width), random(width)]

    query, key, _ = random(pictures, TOKENS, 3, HEADS, HEAD_WIDTH).unbind(2)

    def attention(count: int, tokens: int, heads: int, causal: bool) -> Operation:
        parts = [part.transpose(1, 2) for part in random(count, tokens, 3, heads, HEAD_WIDTH).unbind(2)]
        ours = partial(scaled_dot_product_attention, is_causal=causal)
        eager = partial(F.scaled_dot_product_attention, is_causal=causal)
        return Operation(lambda q, k, v: (eager(q, k, v),), ours, parts, [], dispatched=False)

    gate, value = random(pictures, TOKENS, 2 * HIDDEN).chunk(2, -1)
    x, branch = random(pictures, TOKENS, WIDTH), random(pictures, TOKENS, WIDTH)
    angles = torch.rand(GRID**2, HEAD_WIDTH // 2, generator=generator).to(device)
    tables = [angles.cos(), angles.sin()]

    narrow = [x, branch, *vectors(WIDTH)]
    gated = [gate, value, *vectors(HIDDEN)]
    return {
        "attention of 197 tokens": attention(pictures, TOKENS, HEADS, False),
        "attention of 50 tokens": attention(2 * pictures, 50, HEADS, False),
        "attention of captions of 14": attention(2 * pictures, 14, 8, True),
        "rotate": Operation(rotate_eager, fused.rotate, [query, key], tables),
        "swiglu_norm": Operation(swiglu_norm_eager, partial(fused.swiglu_norm, eps=EPS), gated, []),
        "add_norm": Operation(add_norm_eager, partial(fused.add_norm, eps=EPS), narrow, []),
        "add_post_norm": Operation(add_post_norm_eager, partial(fused.add_post_norm, eps=EPS), narrow, []),
    }


def ways(operation: Operation, device: str) -> dict[str, Function]:
    """Every way at hand to compute it."""
    compiled: Function = torch.compile(operation.eager)
    others = {"eager": operation.eager, "compiled": compiled}
    if not operation.dispatched:
        return others | {"clipkit": lambda *inputs: (operation.ours(*inputs),)}
    dtype = str(operation.inputs[0].dtype).removeprefix("torch.")
    backends = [
        status.name
        for status in dispatch.report()
        if status.device == device and dtype in status.dtypes and "rotate" in status.sweeps
    ]

    def ours(name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        results = operation.ours(*inputs, backend=name)
        return results if isinstance(results, tuple) else (results,)

    return others | {f"clipkit {name}": partial(ours, name) for name in backends}


def steps(operation: Operation, function: Function) -> dict[str, Callable[[], object]]:
    """Forward alone, and with the backward pass."""
    inputs = [value.detach().requires_grad_() for value in operation.inputs]
    with torch.no_grad():
        outputs = function(*inputs, *operation.constants)
    gradients = [torch.randn_like(output) for output in outputs]

    def forward() -> None:
        with torch.no_grad():
            function(*inputs, *operation.constants)

    def both() -> None:
        torch.autograd.grad(function(*inputs, *operation.constants), inputs, gradients)

    return {"forward": forward, "both": both}


def floor(operation: Operation) -> Callable[[], object]:
    """A copy of as many bytes as must be read and written: inputs and outputs, then the gradients of both; the gated
    norm reads its inputs again in the backward pass. (A residual sum reads the rows that were normalised again, but its
    terms have one gradient, or x has the incoming one.)
    """
    with torch.no_grad():
        outputs = operation.eager(*operation.inputs, *operation.constants)
    large = [value for value in (*operation.inputs, *outputs) if value.dim() > 2]
    again = 2 if operation.eager is swiglu_norm_eager else 0
    elements = 2 * sum(value.numel() for value in large) + again * large[0].numel()
    source = torch.ones(elements // 2, dtype=large[0].dtype, device=large[0].device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def measure(name: str, dtype: str, pictures: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """A row for each way."""
    operation = operations(pictures, DTYPES[dtype], device)[name]
    functions = ways(operation, device)
    calls = {(way, step): call for way, f in functions.items() for step, call in steps(operation, f).items()}
    bytes_alone = floor(operation)
    clock = clock_for(device)
    for call in (*calls.values(), bytes_alone):
        call()
    seconds: dict[Any, list[float]] = {key: [] for key in (*calls, "floor")}
    for _ in range(repeats):
        for key, call in calls.items():
            seconds[key].append(clock(call))
        seconds["floor"].append(clock(bytes_alone))
    found = {key: record.summary(values) for key, values in seconds.items()}
    return [
        {
            "operation": name,
            "dtype": dtype,
            "way": way,
            "forward ms": _milliseconds(found[way, "forward"]),
            "both ms": _milliseconds(found[way, "both"]),
            "floor ms": round(1e3 * found["floor"]["median"], 2),
            "times faster than eager": round(found["eager", "both"]["median"] / found[way, "both"]["median"], 2),
            "times faster than compiled": round(found["compiled", "both"]["median"] / found[way, "both"]["median"], 2),
        }
        for way in functions
    ]


def _milliseconds(times: dict[str, float]) -> list[float]:
    """Median, least, most."""
    return [round(1e3 * times[which], 2) for which in ("median", "min", "max")]


def main() -> None:
    """Measure everything; print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16, help="of a batch (use 1024 or so on a card)")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--operation", help="this one alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if given.operation not in (None, *operations(1, torch.float32, "cpu")):
        parser.error(f"--operation: want one of {', '.join(operations(1, torch.float32, 'cpu'))}")
    torch.set_num_threads(given.threads)
    rows = []
    for name in operations(1, torch.float32, "cpu"):
        for dtype in DTYPES:
            if given.operation not in (None, name):
                continue
            rows += measure(name, dtype, given.pictures, given.repeats, given.device)
            print(
                "\n".join(json.dumps(row) for row in rows if row["operation"] == name and row["dtype"] == dtype),
                flush=True,
            )
    command = f"python -m bench.encoder_ops --pictures {given.pictures} --repeats {given.repeats}"
    options = {"pictures": given.pictures, "rows": rows}
    print(record.write("encoder-ops", f"{command} --threads {given.threads}", options, device=given.device))


if __name__ == "__main__":
    main()
