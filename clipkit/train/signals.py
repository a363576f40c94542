# SPDX-License-Identifier: Apache-2.0
"""A request to stop, from a scheduler or a person, as a flag that the loop looks at."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from clipkit.train.runtime import Runtime

log = logging.getLogger(__name__)

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
_FOR_ALL_PROCESSES = tuple(number for number in _SIGNALS if number != signal.SIGINT)  # workers ignore that one


class StopRequest:
    """Set by a signal on any rank; `agreed` tells every rank at the same step."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._owner = os.getpid()

    def agreed(self, runtime: Runtime) -> bool:
        """Whether any rank was asked to stop. Collective: a few bytes from host to host."""
        return bool(runtime.most([self.signal_name is not None])[0])

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: sets the flag and nothing else. A second Ctrl-C stops at once."""
        if os.getpid() != self._owner:
            return  # a data worker that inherited the handler: the parent decides when it ends
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Processes started inside never get SIGTERM and SIGUSR1; for this one they wait until the end of the block.

    Schedulers signal every process of a job. A data worker that dies of it takes the batch along that the save needs.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_ALL_PROCESSES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGUSR1 and SIGINT while inside; the earlier handlers come back afterwards.

    Outside the main thread Python allows no handlers: then the request is never set, and the host handles signals.
    """
    request = StopRequest()
    previous = {}
    try:
        for number in _SIGNALS:
            previous[number] = signal.signal(number, request.handle)
    except ValueError:
        log.warning("not in the main thread: signals are left to the host, and do not save a checkpoint")
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
