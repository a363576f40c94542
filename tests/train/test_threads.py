# SPDX-License-Identifier: Apache-2.0
"""The command decides how OpenMP's threads wait, unless the user did."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROBE = """
import os, sys
import clipkit.cli
assert "torch" not in sys.modules, "too late to tell OpenMP anything"
clipkit.cli.main(["doctor"])
assert "torch" in sys.modules
print("policy", os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize("chosen, found", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_told_otherwise(chosen, found):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if chosen:
        environment["OMP_WAIT_POLICY"] = chosen
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"policy {found}"
