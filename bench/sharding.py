# SPDX-License-Identifier: Apache-2.0
"""What a rank holds and what it sends in a step, for each train.parallel: bytes of tensors, counted, not estimated.

    python -m bench.sharding                     # counts on 2 and 4 gloo ranks; bench/results/ and docs/sharding.md
    python -m bench.sharding --text RESULT       # only the table in docs/sharding.md, of a result file

A training step of a ViT-B-32 with fewer blocks and words, in fp32 with AdamW: bytes of parameters, of gradients after
the step, and of the optimizer's state, each on the rank that has most; and what crosses ranks, as bench.communication
counts it. Nothing here depends on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bench import record
from bench.communication import Counter
from bench.numerics_text import ROOT, commit_name, table
from clipkit.data import Batch
from clipkit.recipes import create_recipe
from clipkit.train import parse_config
from clipkit.train.build import build_step
from clipkit.train.runtime import Runtime
from clipkit.train.step import TrainStep
from clipkit.train.zero import local_part

COMMAND = "python -m bench.sharding"
MODEL, ROWS = "ViT-B-32", 2
# A third of its blocks and a sixth of its words, so that four ranks of "ddp" take 3 GB and not 10.
SMALLER = {"vision.layers": 4, "text.layers": 4, "text.vocab_size": 8192}
DOCUMENT = ROOT / "docs" / "sharding.md"
BEGIN, END = "<!-- bench.sharding: begin -->\n", "<!-- bench.sharding: end -->\n"


class Way(NamedTuple):
    """A value of train.parallel, of train.shards, and how many ranks."""

    parallel: str
    ranks: int
    shards: int | None = None


WAYS = [
    *[Way(parallel, ranks) for ranks in (2, 4) for parallel in ("ddp", "zero1", "fsdp2")],
    Way("hsdp", 4, shards=2),
]


def make_step(way: Way, model: str, overrides: Mapping[str, Any]) -> TrainStep:
    """A training step on this rank."""
    train = {"global_batch": way.ranks * ROWS, "steps": 2, "parallel": way.parallel, "shards": way.shards}
    config = parse_config(
        {"model": {"name": model, "overrides": dict(overrides)}, "data": {"train": "none"}, "train": train}
    )
    runtime = Runtime(rank=dist.get_rank(), world_size=way.ranks, group=dist.group.WORLD)
    recipe = create_recipe(config)
    torch.manual_seed(0)
    step = build_step(config, runtime, recipe, recipe.build(), total_steps=2)
    if isinstance(step.module, DistributedDataParallel):
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        # what DDP does anyway, but through the function of torch.distributed that is counted
        step.module.register_comm_hook(None, allreduce_hook)
    return step


def count(way: Way, model: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes on this rank, and bytes of the second step by the collective that moves them."""
    step = make_step(way, model, overrides)
    batch = _batch(step)
    step(batch, 0)
    counter = Counter()
    with counter.counting():
        step(batch, 1)
    sent: dict[str, int] = {}
    for message in counter.messages:
        sent[message.operation] = sent.get(message.operation, 0) + message.bytes
    parameters = list(step.module.parameters())
    states = local_part(step.optimizer).state.values()
    return {
        "parameters": _bytes(parameters),
        "gradients": _bytes(parameter.grad for parameter in parameters),
        "state": _bytes(value for state in states for value in state.values()),
        "sent": sent,
    }


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    """What these take on this rank: of a sharded one, its shard."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.nbytes for tensor in local if tensor is not None)


def _batch(step: TrainStep) -> Batch:
    """ROWS random pictures and captions of five tokens for this rank."""
    config: Any = step.recipe.model(getattr(step.module, "module", step.module)).config
    size = config.vision.image_size
    vocabulary, length = config.text.vocab_size, config.text.context_length
    tokens = torch.zeros(ROWS, length, dtype=torch.int64)
    tokens[:, :5] = torch.tensor([vocabulary - 2, 1, 2, 3, vocabulary - 1])
    pixels = torch.randn(ROWS, 3, size, size)
    ids = torch.arange(ROWS) + ROWS * dist.get_rank()
    return Batch(ids, pixels, tokens, [""] * ROWS, 0, mean=(0.0,) * 3, std=(1.0,) * 3)


def _measure(rank: int, way: Way, folder: str) -> None:
    answers: list[Any] = [None] * way.ranks
    dist.all_gather_object(answers, count(way, MODEL, SMALLER))
    if rank == 0:
        most = {key: max(answer[key] for answer in answers) for key in ("parameters", "gradients", "state")}
        row = {**way._asdict(), **most, "sent": answers[0]["sent"]}
        Path(folder, "row.json").write_text(json.dumps(row), encoding="utf-8")


def measure() -> list[dict[str, Any]]:
    """A row for each way."""
    from tests.parallel.ranks import run_on_ranks

    rows = []
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            run_on_ranks(way.ranks, _measure, way, folder)
            rows.append(json.loads(Path(folder, "row.json").read_text(encoding="utf-8")))
            print(rows[-1], flush=True)
    return rows


def results_table(result: Mapping[str, Any], name: str) -> str:
    """The part of docs/sharding.md that comes from a result file."""
    stamp = result["environment"]
    cells = [
        [
            str(row["ranks"]),
            row["parallel"] + (f", {row['shards']} shards" if row["shards"] else ""),
            *(_mib(row[key]) for key in ("parameters", "gradients", "state")),
            _mib(sum(row[key] for key in ("parameters", "gradients", "state"))),
            _mib(sum(row["sent"].values())),
        ]
        for row in sorted(result["rows"], key=lambda row: row["ranks"])
    ]
    header = ["ranks", "train.parallel", "weights", "gradients", "AdamW's state", "together", "moved in a step"]
    changes = ", ".join(f"{key}={value}" for key, value in result["overrides"].items())
    origin = (
        f"MiB for each rank, {result['model']} with {changes} in fp32 (`{result['command']}`, [result](../{name}), "
    )
    return f"{origin}torch {stamp['torch']}, commit {commit_name(stamp['commit'])}):\n\n{table(header, cells)}\n"


def _mib(size: int) -> str:
    return f"{size / record.MIB:,.0f}"


def write_document(path: Path, document: Path = DOCUMENT) -> None:
    """Put the table of a result file into the document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    name = path.resolve().relative_to(ROOT).as_posix()
    text = results_table(json.loads(path.read_text(encoding="utf-8")), name)
    document.write_text(before + BEGIN + text + END + after, encoding="utf-8")


def main() -> None:
    """Count, record, write the table; or only the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="RESULT", help="only write the table of this result file")
    options = parser.parse_args()
    path = options.text
    if path is None:
        body = {"model": MODEL, "overrides": SMALLER, "rows_per_rank": ROWS, "rows": measure()}
        path = record.write("sharding", COMMAND, body, device="cpu")
        print(f"wrote {path}")
    write_document(path)


if __name__ == "__main__":
    main()
