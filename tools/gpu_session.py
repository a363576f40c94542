# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a card, in under ten minutes: tests/gpu, a memory checker on small shapes, the bench table, a
whole training step beside open_clip's.

`make gpu`, or `python -m tools.gpu_session` in an environment that has the package. Writes
bench/results/<card>/session-<date>.json: card, driver, versions, commit, and every step with its command, outcome and
time. Ends with what to do next.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 10.0
TAIL_LINES = 60


class Step(NamedTuple):
    """A command, the most seconds it may take, and why it is left out (None: it is not)."""

    name: str
    command: tuple[str, ...]
    seconds: float
    left_out: str | None = None


class Outcome(NamedTuple):
    """What a step did. `code` is None where it did not run or ran out of time; `tail` is the end of its output."""

    name: str
    command: str
    code: int | None
    seconds: float
    summary: str
    tail: list[str]


def steps(minutes: float, checker: str | None) -> list[Step]:
    """Tests get most of half the time, the checker an eighth, the loss table a fifth; the whole step has what is left.

    Its rounds are short beside the models' making and, with --compile, their compilation; a result is written after
    every row, so that one that is cut off has lost the last only.
    """
    total = 60.0 * minutes
    pytest = (sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider")
    small = ("tests/gpu/test_sweeps_gpu.py", "tests/gpu/test_two_forms_gpu.py", "-k", "131 or 66")
    guarded = (checker or "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *pytest, *small)
    bench = (sys.executable, "-m", "bench", "--device", "cuda", "--budget", str(int(0.18 * total)))
    models = ("--models", "ViT-B-32", "ViT-B-16", "EVA02-B-16", "--precision", "bf16", "--batch", "256", "--compile")
    step = (sys.executable, "-m", "bench.end_to_end", "--device", "cuda", *models, "--budget", str(int(0.02 * total)))
    return [
        Step("tests/gpu", (*pytest, "tests/gpu"), 0.4 * total),
        Step("memcheck", guarded, 0.12 * total, None if checker else "compute-sanitizer is not on PATH"),
        Step("bench", bench, 0.2 * total),
        Step("bench.end_to_end", step, 0.28 * total),
    ]


def run_all(plan: Iterable[Step], say: Callable[[str], None] = print) -> list[Outcome]:
    """Each step, whatever became of the ones before it."""
    outcomes = []
    for step in plan:
        outcome = Outcome(step.name, "", None, 0.0, step.left_out, []) if step.left_out else _run(step, say)
        say(f"{outcome.name}: {outcome.summary} ({outcome.seconds:.0f} s)")
        outcomes.append(outcome)
    return outcomes


def _run(step: Step, say: Callable[[str], None]) -> Outcome:
    command = " ".join(step.command).replace(sys.executable, "python")
    say(f"{step.name}: {command}")
    started = time.monotonic()
    process = subprocess.Popen(
        step.command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    )
    try:
        output, _ = process.communicate(timeout=step.seconds)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        code = None
    lines = output.splitlines()
    seconds = time.monotonic() - started
    return Outcome(step.name, command, code, seconds, _summary(code, lines), lines[-TAIL_LINES:])


def _summary(code: int | None, lines: list[str]) -> str:
    """pytest's count of tests, or how the command ended."""
    if code is None:
        return "stopped: out of time"
    counts = [line.strip("= ") for line in lines if re.search(r"\d+ (passed|failed|skipped|errors?)\b.* in ", line)]
    return counts[-1] if counts else ("done" if code == 0 else f"failed with code {code}")


def proven(outcomes: Iterable[Outcome]) -> bool:
    """Whether tests/gpu ran on a card, and nothing in it or under the checker failed."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    tests, checker = by_name["tests/gpu"], by_name["memcheck"]
    return tests.code == 0 and " passed" in tests.summary and (checker.code == 0 or not checker.command)


def advice(outcomes: list[Outcome]) -> str:
    """What this session allows to be changed."""
    if proven(outcomes):
        return (
            "tests/gpu passed on this card: take triton's line out of _UNPROVEN in clipkit/engine/dispatch.py, and"
            " commit bench/results"
        )
    return "tests/gpu did not pass: Triton stays behind its name; the failures are in the result file"


def write_result(outcomes: list[Outcome], command: str) -> Path:
    """bench/results/<card>/session-<date>.json."""
    from bench import record

    body: dict[str, Any] = {
        "packages": {"triton": _version("triton"), "numpy": _version("numpy")},
        "proven": proven(outcomes),
        "steps": [outcome._asdict() for outcome in outcomes],
    }
    return record.write("session", command, body)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> int:
    """0 if everything passed, 1 if not, 2 without a card."""
    parser = argparse.ArgumentParser(description="Run tests/gpu, a memory checker and the benchmarks on one card.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the most that all of it may take")
    parser.add_argument("--skip-bench", action="store_true", help="tests only")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: torch sees none (clipkit doctor says more)", file=sys.stderr)
        return 2
    plan = [
        step
        for step in steps(options.minutes, shutil.which("compute-sanitizer"))
        if not (options.skip_bench and step.name.startswith("bench"))
    ]
    outcomes = run_all(plan)
    path = write_result(outcomes, " ".join(["python -m tools.gpu_session", *sys.argv[1:]]))
    print(f"wrote {path}\n{advice(outcomes)}")
    return 0 if all(outcome.code == 0 or not outcome.command for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
