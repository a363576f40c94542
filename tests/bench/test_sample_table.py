# SPDX-License-Identifier: Apache-2.0
"""The measurement of the table of samples measures, or says why not."""

from __future__ import annotations

import sys

import pytest

from bench.sample_table import SAMPLES, Case, Plan, measured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's accounts of memory")


def test_a_small_table_is_measured():
    found = measured(Case(8, "replicated", 1), Plan(samples=100_000, repeats=2, checkpoints=1))
    mib = 100_000 * 8 * 4 / 2**20
    assert found["table MiB per rank"] == pytest.approx(mib, abs=0.1)
    assert found["resident MiB per rank"] == pytest.approx([mib], abs=1.0)
    assert found["checkpoint MiB"] == pytest.approx(mib, rel=0.05)
    assert all(found[name]["median"] > 0 for name in ("read s", "write s", "checkpoint write s", "checkpoint read s"))


def test_a_table_for_which_memory_is_short_is_left_out():
    found = measured(Case(8, "replicated", 1000), Plan(SAMPLES, repeats=1, checkpoints=1))
    assert found["left out"].startswith("takes 12636")
