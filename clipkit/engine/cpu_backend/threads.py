# SPDX-License-Identifier: Apache-2.0
"""The threads of the compiled backend: as many as torch uses, kept from call to call."""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose own products are not shared out again. They start here, all at once, because torch has one number
    of threads for those yet to come and a number of each thread's own: the former must be as it was when this returns.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix="clipkit", initializer=_compute_alone)
    everyone = threading.Barrier(threads)
    for started in [executor.submit(everyone.wait) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(threads)
    return executor


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # a child process has none of its parent's threads


def _compute_alone() -> None:
    torch.get_num_threads()  # makes this thread take over the common number now, and not after the next line
    torch.set_num_threads(1)
