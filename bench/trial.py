# SPDX-License-Identifier: Apache-2.0
"""A first step of a variant, in a process of its own: does it run, is it right, what does it need.

    python -m bench.trial        # reads requests and answers them, a line of JSON each

The process imports everything once, computes nothing itself, and forks for each request. So every trial starts from a
fresh heap without paying for the imports again, and one that is killed, runs out of memory or breaks the card's context
takes nobody with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch._dynamo  # a registered operator imports it at its first call

from bench import record
from bench.cases import Case, tensors
from bench.clocks import peak_mib
from bench.ours import OURS, ours
from bench.peers import Outcome, Step, Variant, all_peers
from bench.peers.naive import DEFINITIONS

ROOT = Path(__file__).parent.parent
SMALL = 64
"""Rows of the step that warms up and is compared with float64: what is loaded once is then not counted."""

WRONG = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 1e-1}
"""A gradient this far from float64's (relative) is another function's, not a rounding: bf16 logits at this scale cost
0.006 to 0.02."""


@dataclass(frozen=True)
class Trial:
    """What a first step showed; `reason` says why there was none."""

    seconds: float | None = None
    extra_mib: float | None = None
    reason: str | None = None


def named(variant: str) -> Variant:
    """The variant called so: clipkit, clipkit:BACKEND or a peer."""
    if variant.partition(":")[0] == OURS:
        return ours(variant.partition(":")[2] or None)
    return all_peers()[variant]


def explain(error: BaseException) -> str:
    """One line for a table."""
    words = str(error).strip()
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in words or "bad_alloc" in words:
        return "out of memory"
    return f"{type(error).__name__}: {words.splitlines()[0] if words else 'no message'}"[:200]


def disagreement(step: Step, case: Case, device: str) -> str | None:
    """What is wrong with `step` on a small batch, by the definition in float64; None if it computes the loss."""
    small = tensors(case, device, SMALL)
    outcome = step(small, case.direction)
    exact_inputs = {name: value.detach().double() for name, value in vars(small).items()}
    exact = type(small)(**exact_inputs)
    for value in exact.wanted:
        value.requires_grad_()
    loss = DEFINITIONS[case.loss](exact)
    got, want = float(outcome.loss), float(loss.detach())
    if not abs(got - want) <= WRONG[case.dtype] * max(1.0, abs(want)):
        return f"another loss: {got:.6g} where float64 has {want:.6g}"
    gradients = torch.autograd.grad(loss, exact.wanted[:2])
    for name, found, expected in zip(("image", "text"), outcome.gradients, gradients, strict=False):
        error = float((found.double() - expected).norm() / expected.norm())
        if not error <= WRONG[case.dtype]:
            return f"another gradient of {name}: off by {error:.2g} of its length"
    return None


def attempt(case: Case, variant: str, device: str) -> Trial:
    """In the forked process: a small step compared with float64, then one of full size, measured."""
    chosen = named(variant)
    if device == "cpu":
        _limit_memory()
    try:
        step = chosen.load(case.loss)
        wrong = disagreement(step, case, device)
        if wrong:
            return Trial(reason=wrong)
        inputs = tensors(case, device)
        if chosen.compiles:
            step(inputs, case.direction)
        results: list[Outcome] = []
        start = time.perf_counter()
        extra = peak_mib(lambda: results.append(step(inputs, case.direction)), device)
        return Trial(time.perf_counter() - start, extra)
    except Exception as error:
        return Trial(reason=explain(error))


def _limit_memory() -> None:
    """What is free now and nothing more: an allocation beyond it fails here, where the system would kill somebody."""
    status = record.kibibytes("/proc/self/status", "VmData")
    free = record.kibibytes("/proc/meminfo", "MemAvailable")
    limit = (status + free * 9 // 10) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class Trials:
    """The process that forks, started at the first trial of a run of the suite."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, case: Case, variant: str, device: str, patience: float) -> Trial:
        """One trial, given up after `patience` seconds."""
        request = {"case": asdict(case), "variant": variant, "device": device, "patience": patience}
        if self._process is None:
            command = [sys.executable, "-m", "bench.trial"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
        to_it, from_it = self._process.stdin, self._process.stdout
        assert to_it is not None
        assert from_it is not None
        to_it.write(json.dumps(request) + "\n")
        to_it.flush()
        answer = from_it.readline()
        if not answer:
            raise RuntimeError("the process of the trials ended; its last words are above")
        return Trial(**json.loads(answer))

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()  # the end of its requests ends it


def forked(work: Callable[[], Trial], patience: float) -> Trial:
    """`work` in a fork of this process, killed after `patience` seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            os.write(writing, json.dumps(asdict(work())).encode())
        finally:
            os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], patience)
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading, "rb") as stream:
        words = stream.read() if ready else b""
    _, status = os.waitpid(child, 0)
    if words:
        return Trial(**json.loads(words))
    if not ready:
        return Trial(reason=f"no step within {patience:.0f} s")
    return Trial(reason=f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "the process ended")


def answer(request: dict[str, Any]) -> Trial:
    """One request as `Trials.run` sends it. Imports are done here, once, and inherited; but not for a card: a package
    that looks at it when imported would leave it unusable to every fork.
    """
    case = Case(**request["case"])
    if request["device"] == "cpu":
        with contextlib.suppress(Exception):  # the fork meets it again, and says so
            named(request["variant"]).load(case.loss)
    return forked(lambda: attempt(case, request["variant"], request["device"]), request["patience"])


def main() -> None:
    """Answer requests until there are no more. What trials print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            answers.write(json.dumps(asdict(answer(json.loads(line)))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
