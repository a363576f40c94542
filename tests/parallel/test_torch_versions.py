# SPDX-License-Identifier: Apache-2.0
"""The oldest torch that is supported lacks names that the newest has."""

from __future__ import annotations

import subprocess
import sys

ABSENT_IN_2_9 = ("GroupName", "all_gather_single", "reduce_scatter_single")
PROGRAM = f"""
import torch.distributed as dist
from torch.distributed import distributed_c10d
for module in (dist, distributed_c10d):
    for name in {ABSENT_IN_2_9}:
        vars(module).pop(name, None)
import clipkit.parallel, clipkit.functional
"""


def test_the_library_imports_without_the_names_that_torch_2_9_lacks():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
