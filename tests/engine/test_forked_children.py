# SPDX-License-Identifier: Apache-2.0
"""A child that a process forks after it has computed a loss (data workers do) has none of its parent's threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, torch, clipkit
from clipkit.engine.cpu_backend.threads import pool
torch.set_num_threads(2)
x = torch.nn.functional.normalize(torch.randn(700, 8), dim=1)
clipkit.clip_loss(x, x, 10.0)
child = os.fork()
if child == 0:
    print(pool(2).submit(lambda: "computed").result(timeout=20), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_the_child_starts_threads_of_its_own():
    pytest.importorskip("clipkit._native", reason="the threads are the compiled backend's")
    answer = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert answer.stdout.strip() == "computed", answer.stderr
