# SPDX-License-Identifier: Apache-2.0
"""ViT-B-32's text tower, forward and backward: packed captions beside padded ones, of the same weights.

    python -m bench.packed_text

In turns in one process: this library's tower, the same blocks over padded text, and open_clip's own tower where it
imports. Features and gradients are compared first.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shlex
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import record
from bench.clocks import peak_mib
from bench.padded_text import encode_padded_text
from bench.peers import import_peer
from clipkit.encoders import CLIP, create_model, get_config
from clipkit.encoders.text import unit_length

COMMAND = "python -m bench.packed_text"
LENGTHS = {
    **{6: 30, 7: 50, 8: 70, 9: 85, 10: 85, 11: 89, 12: 84, 13: 80, 14: 70, 15: 60, 16: 50, 17: 40, 18: 35},
    **{20: 50, 22: 35, 25: 25, 30: 20, 38: 16, 50: 12, 77: 14},
}
"""Captions of each length in a thousand, start and end tokens counted: mean 15.0, mode 11, a long tail of which 1.4 %
is cut at the context. Modelled on alt-text of the web (short, skewed as a log-normal is), not counted from one set.
"""

Encode = Callable[[Tensor], Tensor]


def captions(count: int, seed: int = 0) -> Tensor:
    """[count, 77] token rows whose lengths follow LENGTHS: start, random ids, end, zeros."""
    draw = random.Random(seed)
    vocab = get_config("ViT-B-32").text.vocab_size
    rows = torch.zeros(count, 77, dtype=torch.int64)
    for row, length in zip(rows, draw.choices(list(LENGTHS), list(LENGTHS.values()), k=count), strict=True):
        row[0], row[length - 1] = vocab - 2, vocab - 1
        row[1 : length - 1] = torch.tensor([draw.randrange(1, vocab - 2) for _ in range(length - 2)])
    return rows


def towers(model: CLIP) -> dict[str, tuple[Encode, torch.nn.Module]]:
    """What is measured, by name: a function of tokens, and whose gradients it makes."""
    found: dict[str, tuple[Encode, torch.nn.Module]] = {
        "packed": (lambda tokens: model.encode_text(tokens, normalize=True), model),
        "padded": (lambda tokens: encode_padded_text(model, tokens), model),
    }
    try:
        import_peer("open_clip")
        tower: Any = import_peer("open_clip.transformer").TextTransformer(output_dim=model.config.embed_dim)
    except ImportError as error:
        print(f"open_clip: not measured ({error})")
        return found
    mine = {n: v for n, v in model.state_dict().items() if not n.startswith(("visual.", "logit_"))}
    tower.load_state_dict(mine)
    found["open_clip"] = (lambda tokens: unit_length(tower(tokens)), tower)
    return found


def one_step(encode: Encode, owner: torch.nn.Module, tokens: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Features, after the gradients of their weighted sum were left in `owner`."""
    owner.zero_grad(set_to_none=True)
    low = dtype != torch.float32
    with torch.autocast(tokens.device.type, dtype=dtype) if low else contextlib.nullcontext():
        features = encode(tokens)
    (features.float() * weights).sum().backward()
    return features.detach().float()


def assert_equal(steps: dict[str, Callable[[], Tensor]], owners: dict[str, torch.nn.Module], tolerance: float) -> None:
    """Features and every gradient of each tower are those of the packed one, by relative norm."""
    wanted: list[Tensor] = []
    for name, step in steps.items():
        features = step()
        gradients = {n: p.grad for n, p in owners[name].named_parameters() if p.grad is not None}
        found = [features, *(gradients[n].clone() for n in sorted(gradients))]
        wanted = wanted or found
        for ours, theirs in zip(wanted, found, strict=True):
            error = float((ours - theirs).norm() / (ours.norm() + 1e-12))
            if error > tolerance:
                raise AssertionError(f"{name} differs from packed by {error:.2g}")


def measure(model: CLIP, batch: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """One row: seconds, peak MiB and ratios to the packed tower."""
    tokens, weights = captions(batch), torch.randn(batch, model.config.embed_dim)
    found = towers(model)
    owners = {name: owner for name, (_, owner) in found.items()}
    steps: dict[str, Callable[[], Tensor]] = {
        name: partial(one_step, encode, owner, tokens, weights, dtype) for name, (encode, owner) in found.items()
    }
    assert_equal(steps, owners, 1e-4 if dtype == torch.float32 else 0.1)
    peaks = {name: round(peak_mib(step, "cpu")) for name, step in steps.items()}
    seconds = record.interleaved(steps, repeats)
    ratios = {
        name: round(statistics.median(b / a for a, b in zip(seconds["packed"], times, strict=True)), 2)
        for name, times in seconds.items()
    }
    mean = float(tokens.argmax(dim=1).float().mean()) + 1
    return {
        **{"batch": batch, "dtype": str(dtype).removeprefix("torch."), "mean_length": round(mean, 2)},
        **{"over_packed": ratios, "peak_mib": peaks},
        "seconds": {name: record.summary(times) for name, times in seconds.items()},
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = create_model("ViT-B-32")
    rows = []
    for batch in options.batch:
        for dtype in options.dtype:
            rows.append(measure(model, batch, getattr(torch, dtype), options.repeats))
            print(rows[-1])
    path = record.write("packed-text", shlex.join([*COMMAND.split(), *sys.argv[1:]]), {"rows": rows}, device="cpu")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
