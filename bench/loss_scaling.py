# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of the CLIP loss, forward plus backward, against the batch: clipkit beside open_clip.

    python -m bench.loss_scaling            # measure, write bench/results/, draw docs/figures/loss_scaling.svg
    python -m bench.loss_scaling --dtype bfloat16 --sizes 4096 8192         # the same in bf16; draws nothing

Floor: the gradients need S once and two products of the same size, and not storing S costs S once more: four products
of [N, d] with [d, N], 2·N²·d FLOP each. They are timed in the same run on the same inputs, in bf16 with the library's
results rounded to bf16. Times are interleaved medians in one process; memory is the growth of the resident peak of a
fresh process over one step.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench import record
from bench.peers import import_peer

COMMAND = "python -m bench.loss_scaling"
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "loss_scaling.svg"
WIDTH = 512
SIZES = (1024, 2048, 4096, 8192, 16384, 32768)
LARGEST = {"open_clip": 16384}
"""open_clip's step at 32,768 wants about 20 GiB."""


def inputs(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features [rows, 512] and an fp32 scale of 1/0.07, all wanting gradients."""
    generator = torch.Generator().manual_seed(0)
    towers = [
        torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator), dim=1).to(dtype).requires_grad_()
        for _ in range(2)
    ]
    return towers[0], towers[1], torch.tensor(1 / 0.07, requires_grad=True)


def step_of(name: str) -> Callable[[Tensor, Tensor, Tensor], None]:
    """One forward and backward of the loss called `name`."""
    if name == "clipkit":
        from clipkit import ClipLoss
    else:
        ClipLoss = import_peer("open_clip").ClipLoss
    loss = ClipLoss()

    def step(image: Tensor, text: Tensor, scale: Tensor) -> None:
        torch.autograd.grad(loss(image, text, scale), (image, text, scale))

    return step


def four_products(image: Tensor, text: Tensor) -> None:
    """The floor: as many FLOP as a step needs without storing the logits."""
    rows, columns = image.detach(), text.detach()
    for start in range(0, len(rows), 1024):
        tile = rows[start : start + 1024] @ columns.T
        torch.mm(rows[start : start + 1024], columns.T, out=tile)
        _ = tile @ columns
        _ = tile.T @ rows[start : start + 1024]


def measure_memory(name: str, rows: int, dtype: str) -> float:
    """MiB by which one step raises the resident peak of a fresh process."""
    run = subprocess.run(
        [sys.executable, "-m", "bench.loss_scaling", "--probe", name, str(rows), "--dtype", dtype],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    return float(run.stdout)


def probe(name: str, rows: int, dtype: torch.dtype) -> float:
    """Called in the fresh process. A small step first, so that what is loaded once is not counted; and what making the
    inputs left in the allocator is given back, lest a step that reuses it look smaller than it is.
    """
    step = step_of(name)
    step(*inputs(64, dtype))
    tensors = inputs(rows, dtype)
    ctypes.CDLL(None).malloc_trim(0)
    return record.peak_extra_mib(lambda: step(*tensors))


def measure(sizes: tuple[int, ...], repeats: int, dtype: str) -> list[dict[str, object]]:
    """One row for each size: seconds and MiB of each loss, seconds of the floor."""
    steps = {name: step_of(name) for name in ("clipkit", "open_clip")}
    rows = []
    for size in sizes:
        image, text, scale = inputs(size, getattr(torch, dtype))
        named = {name: step for name, step in steps.items() if size <= LARGEST.get(name, size)}
        calls: dict[str, Callable[[], object]] = {n: partial(s, image, text, scale) for n, s in named.items()}
        calls["four products"] = partial(four_products, image, text)
        seconds = record.interleaved(calls, repeats)
        row = {
            "N": size,
            "seconds": {name: record.summary(values) for name, values in seconds.items()},
            "extra_mib": {name: measure_memory(name, size, dtype) for name in named},
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def draw(rows: list[dict[str, object]], caption: str) -> None:
    """Two panels on log axes, peers named."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "clipkit"
    from matplotlib import pyplot

    figure, (time_axis, memory_axis) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    styles = {"clipkit": ("#0b6e4f", "o", "-"), "open_clip": ("#b23a48", "s", "-"), "four products": ("#777", "", ":")}
    for name, (color, marker, line) in styles.items():
        timed = [row for row in rows if name in row["seconds"]]  # type: ignore[operator]
        label = f"{name} (floor)" if name == "four products" else name
        style = {"color": color, "marker": marker, "linestyle": line, "label": label}
        sizes = [row["N"] for row in timed]
        time_axis.plot(sizes, [row["seconds"][name]["median"] for row in timed], **style)  # type: ignore[index]
        if name != "four products":
            memory_axis.plot(sizes, [row["extra_mib"][name] for row in timed], **style)  # type: ignore[index]
    for axis, title, unit in ((time_axis, "time", "seconds"), (memory_axis, "extra memory", "MiB")):
        axis.set(xscale="log", yscale="log", xlabel="global batch N", ylabel=unit, title=f"{title}, forward + backward")
        axis.set_xticks(SIZES, [f"{size // 1024}k" for size in SIZES], minor=False)
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    figure.text(0.5, 0.005, caption, ha="center", fontsize=7, color="#555")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """Measure, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the features")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--probe", nargs=2, metavar=("LOSS", "N"), help=argparse.SUPPRESS)
    parser.add_argument("--draw", type=Path, help="only draw the figure again from this result file")
    options = parser.parse_args()
    if options.probe:
        print(probe(options.probe[0], int(options.probe[1]), getattr(torch, options.dtype)))
        return
    if options.draw:
        result = json.loads(options.draw.read_text())
    else:
        rows = measure(tuple(options.sizes), options.repeats, options.dtype)
        command = shlex.join([*COMMAND.split(), *sys.argv[1:]])
        name = "loss-scaling" if options.dtype == "float32" else f"loss-scaling-{options.dtype}"
        path = record.write(name, command, {"d": WIDTH, "dtype": options.dtype, "rows": rows})
        print(f"wrote {path}")
        if options.dtype != "float32":  # the figure shows fp32
            return
        result = json.loads(path.read_text())
    stamp = result["environment"]
    draw(result["rows"], f"d = 512, fp32, {stamp['device']}, torch {stamp['torch']}, commit {str(stamp['commit'])[:9]}")
    print(f"drew {FIGURE}")


if __name__ == "__main__":
    main()
