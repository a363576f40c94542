# SPDX-License-Identifier: Apache-2.0
"""Run a function on several gloo ranks of this machine; a failure on any rank fails the test with that rank's
traceback.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(world_size: int, function: Callable[..., None], *arguments: object) -> None:
    """Call `function(rank, *arguments)` in `world_size` processes that share a gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, (world_size, f"{folder}/rendezvous", function, arguments), nprocs=world_size)


def _enter(
    rank: int, world_size: int, rendezvous: str, function: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        function(rank, *arguments)
        dist.barrier()  # nobody leaves while another still sends
    finally:
        dist.destroy_process_group()
    # Without the interpreter's own end: gloo's threads may outlive it, and in 2 of 20 runs of a test whose ranks had
    # all passed one then ended in std::terminate.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
