# SPDX-License-Identifier: Apache-2.0
"""Offline compilation in several processes, with a cache that survives the session; as a program, the whole table.

python -m tests.aot.compiling [--arch 90] [--sweep divergence] > table.txt
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CACHE = ROOT / "build" / "aot"

ARCHS = (80, 90, 100, 120)
# Whole tiles; ragged edges and a width that is no multiple of a K block; the narrow rows of the table; a width whose
# rows are not aligned, so that loads are of single elements and nothing is pipelined.
SHAPES = {"even": (8192, 8192, 512), "ragged": (8000, 8001, 656), "narrow": (8192, 8192, 256), "odd": (8000, 8001, 650)}
# The shapes of each type: fp16's code is bf16's except for the type, and no row of the table is for narrow fp32.
DTYPES = {"bf16": tuple(SHAPES), "fp16": ("even",), "fp32": ("even", "ragged", "odd")}


class Case(NamedTuple):
    """One sweep for towers of a dtype and shape on one architecture."""

    sweep: str
    dtype: str
    shape: str
    arch: int

    def request(self) -> dict[str, Any]:
        """What compile_worker.py is asked."""
        return {**self._asdict(), "shape": SHAPES[self.shape]}


class CompilerDiedError(Exception):
    """The compiler took its process along; the message is the end of what it printed."""


class _Worker:
    """One compiler process, started again after a crash."""

    def __init__(self, cache: Path):
        self._environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        self._environment["TRITON_CACHE_DIR"] = str(cache)
        self._program: subprocess.Popen[str] | None = None
        self._log = tempfile.NamedTemporaryFile("w+", prefix="clipkit-aot-")  # noqa: SIM115

    def ask(self, request: dict[str, Any]) -> Any:
        if self._program is None:
            command = [sys.executable, "-m", "tests.aot.compile_worker"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
            self._program = subprocess.Popen(command, text=True, cwd=ROOT, env=self._environment, **pipes)
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps(request) + "\n")
        self._program.stdin.flush()
        line = self._program.stdout.readline()
        if not line:
            self.close()
            raise CompilerDiedError(f"{request}:\n{Path(self._log.name).read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        if self._program is not None:
            assert self._program.stdin is not None
            self._program.stdin.close()
            self._program.wait(timeout=60)
            self._program = None


class CompileFarm:
    """As many compiler processes as asked for; requests are futures."""

    def __init__(self, processes: int, cache: Path = DEFAULT_CACHE):
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(processes):
            self._idle.put(_Worker(cache))
        self._threads = ThreadPoolExecutor(processes)

    def submit(self, request: dict[str, Any]) -> Future[Any]:
        """The worker's answer, or CompilerDiedError."""
        return self._threads.submit(self._ask, request)

    def _ask(self, request: dict[str, Any]) -> Any:
        worker = self._idle.get()
        try:
            return worker.ask(request)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Wait for what was asked, then stop the processes."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()


def every_case() -> list[Case]:
    """Each sweep, type, shape and architecture."""
    from tests.aot.launches import SWEEPS

    return [
        Case(sweep, dtype, shape, arch)
        for sweep, (dtype, shapes) in itertools.product(SWEEPS, DTYPES.items())
        for shape, arch in itertools.product(shapes, ARCHS)
    ]


def local_accesses(compiled: dict[str, Any]) -> int:
    """Stores to and loads from local memory: what does not fit the registers. (A stack without any is a frame that the
    assembler reserved and never used.)
    """
    return sum(compiled["opcodes"].get(name, 0) for name in ("STL", "LDL"))


def table_lines(case: Case, compiled: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each kernel of a case: what the compiler made of it."""
    from clipkit.kernels.accounting import blocks_per_multiprocessor

    for result in compiled:
        constants, opcodes, options = result["constants"], result["opcodes"], result["options"]
        sizes = [constants[name] for name in ("BLOCK", "BLOCK_M", "BLOCK_N", "BLOCK_K") if name in constants]
        warps, stages = options["num_warps"], options.get("num_stages", 0)
        blocks = blocks_per_multiprocessor(warps, result["registers"], result["shared"], case.arch)
        matrix = sum(opcodes.get(name, 0) for name in ("HMMA", "HGMMA", "UTCHMMA", "OMMA"))
        yield (
            f"sm_{case.arch:<4} {case.dtype} {case.shape:<7}{case.sweep:<27}{result['kernel']:<25}"
            f"{'x'.join(map(str, sizes)):<11}{warps:>3}w{stages:>2}s{result['registers']:>4} reg"
            f"{local_accesses(result):>5} spill{result['shared'] / 1024:>7.1f} KB {blocks:>2}/SM"
            f"  EX2 {opcodes.get('MUFU.EX2', 0):>4}"
            f"  SHFL {opcodes.get('SHFL', 0):>4}  MMA {matrix:>4}"
        )


def main() -> None:
    """Print the table of all cases, or of some."""
    parser = argparse.ArgumentParser(
        description="Compile every kernel in every shipped configuration; print the table."
    )
    parser.add_argument("--arch", type=int, choices=ARCHS)
    parser.add_argument("--sweep", help="cases whose sweep's name begins so")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    farm = CompileFarm(chosen.processes)
    cases = [
        case
        for case in every_case()
        if case.sweep.startswith(chosen.sweep or "")
        and chosen.arch in (None, case.arch)
        and chosen.dtype in (None, case.dtype)
        and chosen.shape in (None, case.shape)
    ]
    answers = [farm.submit(case.request()) for case in cases]
    print(f"# triton {importlib.metadata.version('triton')}: what it makes of every kernel, compiled without a card")
    shown: set[str] = set()
    for case, future in zip(cases, answers, strict=True):
        try:
            lines = list(table_lines(case, future.result()))
        except CompilerDiedError as error:
            lines = [f"sm_{case.arch} {case.dtype} {case.shape} {case.sweep}: the compiler died: {error}"]
        print("\n".join(line for line in lines if line not in shown), flush=True)
        shown.update(lines)
    spilling = sum(" 0 spill" not in line for line in shown)
    print(f"# {len(shown)} compiled kernels, {spilling} of them with registers in local memory")
    farm.close()


if __name__ == "__main__":
    main()
