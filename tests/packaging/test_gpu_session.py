# SPDX-License-Identifier: Apache-2.0
"""The session on a card, without one: steps run whatever became of the others, in time, and only a pass is a proof."""

import sys

import pytest

from tools import gpu_session
from tools.gpu_session import Outcome, Step


def python(code):
    return (sys.executable, "-c", code)


def test_steps_run_whatever_became_of_the_ones_before():
    plan = [
        Step("a", python("print('== 3 passed, 1 failed in 2.00s =='); raise SystemExit(1)"), 30),
        Step("b", python("import time; print('begun', flush=True); time.sleep(60)"), 2),
        Step("c", ("nothing",), 30, "not here"),
        Step("d", python("print('ok')"), 30),
    ]
    said = []
    a, b, c, d = gpu_session.run_all(plan, said.append)
    assert (a.code, a.summary) == (1, "3 passed, 1 failed in 2.00s")
    assert (b.code, b.summary, b.tail) == (None, "stopped: out of time", ["begun"])
    assert (c.code, c.summary, c.command) == (None, "not here", "")
    assert (d.code, d.summary, d.tail) == (0, "done", ["ok"])
    assert any("not here" in line for line in said)


@pytest.mark.parametrize(
    "tests, checker, result",
    [
        (Outcome("tests/gpu", "x", 0, 1.0, "9 passed in 2s", []), Outcome("memcheck", "", None, 0.0, "-", []), True),
        (Outcome("tests/gpu", "x", 0, 1.0, "9 passed in 2s", []), Outcome("memcheck", "x", 0, 0.0, "-", []), True),
        (Outcome("tests/gpu", "x", 0, 1.0, "9 passed in 2s", []), Outcome("memcheck", "x", 9, 0.0, "-", []), False),
        (Outcome("tests/gpu", "x", 0, 1.0, "9 skipped in 2s", []), Outcome("memcheck", "x", 0, 0.0, "-", []), False),
        (Outcome("tests/gpu", "x", None, 1.0, "stopped", []), Outcome("memcheck", "x", 0, 0.0, "-", []), False),
    ],
)
def test_only_a_pass_on_a_card_is_a_proof(tests, checker, result):
    assert gpu_session.proven([tests, checker]) == result
    assert ("take triton's line out" in gpu_session.advice([tests, checker])) == result


def test_the_steps_fit_the_time_that_is_given():
    plan = gpu_session.steps(10.0, "/usr/bin/compute-sanitizer")
    assert sum(step.seconds for step in plan) <= 600
    assert [step.name for step in plan] == ["tests/gpu", "memcheck", "bench", "bench.end_to_end"]
    for step in plan[-2:]:
        assert step.command[-2] == "--budget"
        assert float(step.command[-1]) < step.seconds
    assert gpu_session.steps(10.0, None)[1].left_out
