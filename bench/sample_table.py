# SPDX-License-Identifier: Apache-2.0
"""The table of per-sample state at the size of a large data set: memory, reads, writes and checkpoints, measured.

    python -m bench.sample_table

A synthetic index of 414,080,000 samples (what LAION-400M's state has to hold), random ids, gloo ranks of this machine
with a thread each. Two columns are log u of FastCLIP v0, v1 and v3; eight are v2's, with individual temperatures and
their moments. Cases run one after the other, each in processes of its own; one for which memory is short is left out
and says so. Times are the slowest rank's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bench import record
from clipkit.parallel import Placement, SampleTable
from clipkit.train import dcp

SAMPLES, BATCH = 414_080_000, 5120
INITIAL = {2: [-math.inf] * 2, 8: [-math.inf] * 2 + [0.03] * 2 + [0.0] * 4}
SPARE_MIB = 4 * 1024
"""What a machine that others use as well must still have left."""


class Case(NamedTuple):
    """A table of `columns` over `ranks` processes."""

    columns: int
    placement: Placement
    ranks: int

    def mib(self, samples: int) -> float:
        """Memory of the whole case."""
        copies = self.ranks if self.placement == "replicated" else 1
        return copies * samples * self.columns * 4 / record.MIB


class Plan(NamedTuple):
    """How much is measured."""

    samples: int
    repeats: int
    checkpoints: int


WAYS: list[tuple[Placement, int]] = [("replicated", 1), ("sharded", 2), ("sharded", 4)]
CASES = [Case(columns, placement, ranks) for columns in INITIAL for placement, ranks in WAYS]


def main() -> None:
    """Measure every case; print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--repeats", type=int, default=50, help="reads and writes of each case")
    parser.add_argument("--checkpoints", type=int, default=3, help="checkpoints written and read of each case")
    plan = Plan(**vars(parser.parse_args()))
    rows = []
    for case in CASES:
        rows.append({**case._asdict(), **measured(case, plan)})
        print(json.dumps(rows[-1]), flush=True)
    body = {**plan._asdict(), "batch": BATCH, "rows": rows}
    options = " ".join(f"--{name} {value}" for name, value in plan._asdict().items())
    print(record.write("sample-table", f"python -m bench.sample_table {options}", body, device="cpu"))


def measured(case: Case, plan: Plan) -> dict[str, Any]:
    """What a case's ranks found, or why it was left out."""
    short = _shortage(case.mib(plan.samples))
    if short:
        return {"left out": short}
    with tempfile.TemporaryDirectory(prefix="sample-table-") as folder:
        mp.spawn(_rank, (case, plan, Path(folder)), nprocs=case.ranks)
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    return found


def _shortage(mib: float) -> str:
    """Why so much memory is not to be taken now, or nothing."""
    available = record.kibibytes("/proc/meminfo", "MemAvailable") / 1024
    return f"takes {mib:.0f} MiB, {available:.0f} are available" if mib + SPARE_MIB > available else ""


def _rank(rank: int, case: Case, plan: Plan, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=case.ranks,
        timeout=datetime.timedelta(minutes=10),
    )
    try:
        found = measure(case, plan, folder)
        if rank == 0:
            (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def measure(case: Case, plan: Plan, folder: Path) -> dict[str, Any]:
    """Memory, reads, writes and checkpoints of one case, on every rank alike."""
    _everyone(0.0)  # what the first collective allocates is not the table's
    before = record.kibibytes("/proc/self/status", "VmRSS")
    start = time.perf_counter()
    table = SampleTable(plan.samples, INITIAL[case.columns], placement=case.placement, group=dist.group.WORLD)
    seconds = time.perf_counter() - start
    resident = (record.kibibytes("/proc/self/status", "VmRSS") - before) / 1024
    own = torch.Generator().manual_seed(100 + dist.get_rank())
    shared = torch.Generator().manual_seed(7)

    def read() -> object:
        return table.read(torch.randint(plan.samples, (BATCH // case.ranks,), generator=own))

    def write() -> None:
        ids = torch.randint(plan.samples, (BATCH,), generator=shared)
        table.write(ids, torch.randn(BATCH, case.columns, generator=shared))

    for first in (read, write, table.tensors):  # what is imported or connected only once
        first()
    return {
        "table MiB per rank": round(table.bytes / record.MIB, 1),
        "resident MiB per rank": [round(value, 1) for value in _everyone(resident)],
        "fill s": max(_everyone(seconds)),
        "read s": _slowest(read, plan.repeats),
        "read, all ranks' bytes on the wire": {
            "of ids and rows": (case.ranks - 1) * BATCH * (8 + 4 * case.columns),
            "measured": _loopback_bytes(read),
        },
        "write s": _slowest(write, plan.repeats),
        **_checkpoints(table, case, plan, folder),
    }


def _checkpoints(table: SampleTable, case: Case, plan: Plan, folder: Path) -> dict[str, Any]:
    """Seconds of writing and of reading in place, the files' size, and the memory that either takes for a while."""
    path = folder / "checkpoint"

    def clear() -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(path, ignore_errors=True)

    def cost(verb: str, call: Callable[..., None], before: Callable[[], None]) -> dict[str, Any]:
        extra: list[float] = []

        def watched() -> None:
            extra.append(record.peak_extra_mib(lambda: call(table.tensors(), path, dist.group.WORLD)))

        seconds = _slowest(watched, plan.checkpoints, before)
        memory = round(max(_everyone(max(extra))), 1)
        return {f"checkpoint {verb} s": seconds, f"checkpoint {verb}, extra MiB per rank": memory}

    found = cost("write", dcp.save_tensors, clear)
    found["checkpoint MiB"] = round(sum(file.stat().st_size for file in path.rglob("*.distcp")) / record.MIB, 1)
    if any(_everyone(bool(_shortage(case.mib(plan.samples))))):  # each rank holds its part a second time
        return {**found, "checkpoint read s": "left out: memory for a second table is short"}
    return {**found, **cost("read", dcp.load_tensors, lambda: None)}


def _slowest(call: Callable[[], object], repeats: int, before: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Median and spread of the slowest rank's seconds; all ranks begin together, after `before`."""
    seconds: list[float] = []
    for _ in range(repeats):
        before()
        dist.barrier()
        start = time.perf_counter()
        call()
        seconds.append(max(_everyone(time.perf_counter() - start)))
    return record.summary(seconds)


def _loopback_bytes(call: Callable[[], object], times: int = 20) -> float:
    """Bytes through this machine's loopback for one call, the least of three tries, headers and strangers' included."""
    tries = []
    for _ in range(3):
        dist.barrier()
        start = _received()
        for _ in range(times):
            call()
        dist.barrier()
        tries.append((_received() - start) / times)
    return min(tries)


def _received() -> int:
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[0] == "lo:")


def _everyone(value: float) -> list[float]:
    """Every rank's number."""
    mine = torch.tensor([value], dtype=torch.float64)
    numbers = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(numbers, mine)
    return [number.item() for number in numbers]


if __name__ == "__main__":
    main()
