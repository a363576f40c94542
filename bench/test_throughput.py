# SPDX-License-Identifier: Apache-2.0
"""Each case and variant as a benchmark of pytest-benchmark: `pytest bench/`, then its own options to save and compare.

Beside the times, `extra_info` holds peak extra memory and the share of the GEMM floor, timed in the same rounds. Across
variants compare with `clipkit bench`, which measures them in turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from bench.cases import Case, tensors
from bench.clocks import clock_for, peak_mib
from bench.floor import run_products
from bench.peers import Variant
from bench.suite import PEAK_IS_KNOWN
from bench.trial import Trial, Trials, disagreement

pytest.importorskip("pytest_benchmark")
ROUNDS = 5
PATIENCE = 300.0


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    """Fresh processes for first steps."""
    with Trials() as running:
        yield running


def test_throughput(
    benchmark: Any, trials: Trials, case: Case, variant: Variant, request: pytest.FixtureRequest
) -> None:
    """Time of a step, its memory and its share of the floor; skipped, with the reason, where the variant cannot run."""
    device = request.config.getoption("--device")
    if variant.needs_cuda and device != "cuda":
        pytest.skip("needs CUDA")
    if variant.distribution and variant.version is None:
        pytest.skip(f"not installed: pip install {variant.distribution}")
    first = trials.run(case, variant.name, device, PATIENCE) if PEAK_IS_KNOWN else Trial()
    if first.reason:
        pytest.skip(first.reason)
    inputs = tensors(case, device)
    step = variant.load(case.loss)
    assert disagreement(step, case, device) is None
    call = partial(step, inputs, case.direction)
    clock, floor = clock_for(device), partial(run_products, case, inputs)
    clock(floor)
    floors: list[float] = []
    finish = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def timed() -> None:
        call()
        finish()

    benchmark.pedantic(timed, setup=lambda: floors.append(clock(floor)), rounds=ROUNDS, warmup_rounds=1)
    units = case.products.units
    benchmark.extra_info |= {
        "case": str(case),
        "variant": variant.name,
        "version": variant.version,
        "extra_mib": first.extra_mib if device == "cpu" else peak_mib(call, device),
        "floor_units": units,
        "floor_share": sorted(floors)[len(floors) // 2] / benchmark.stats.stats.median,
    }
