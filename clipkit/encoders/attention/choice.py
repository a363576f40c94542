# SPDX-License-Identifier: Apache-2.0
"""A table of kernels for one kind of attention: the first that can serve the tensors runs, or the forced one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from clipkit.errors import value_error

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Obstacle = Callable[[torch.device, torch.dtype, int], str | None]


@dataclass(frozen=True)
class Kernel:
    """One implementation.

    Attributes:
        name: in the environment variable and in `clipkit doctor`.
        obstacle: (device, dtype, head width) -> why it cannot serve such tensors, or None.
        load: imports what it needs and returns the function.
    """

    name: str
    obstacle: Obstacle
    load: Callable[[], Callable[..., Any]]


class Status(NamedTuple):
    """One line of `clipkit doctor`: the dtypes for which `name` runs on `device`, and why not for the others."""

    name: str
    device: str
    dtypes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Table:
    """Kernels for `purpose`, best first; the last one serves everything. The environment's `variable` forces one."""

    purpose: str
    variable: str
    kernels: tuple[Kernel, ...]

    def choose(self, device: torch.device, dtype: torch.dtype, head_width: int) -> Kernel:
        """The kernel for such tensors.

        Raises:
            ValueError: the environment names one that does not exist or cannot serve them.
        """
        return _choose(self, os.environ.get(self.variable, ""), device, dtype, head_width)

    def report(self, head_width: int = 64) -> Iterator[Status]:
        """Every kernel on every kind of device at hand."""
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            device = torch.device(kind)
            runs = {dtype: self._name(device, dtype, head_width) for dtype in DTYPES}
            for kernel in self.kernels:
                served = tuple(_plain(dtype) for dtype, name in runs.items() if name == kernel.name)
                yield Status(kernel.name, kind, served, self._why_not(kernel, device, runs, head_width))

    def _name(self, device: torch.device, dtype: torch.dtype, head_width: int) -> str:
        try:
            return self.choose(device, dtype, head_width).name
        except ValueError:  # one is forced that cannot
            return ""

    def _why_not(self, kernel: Kernel, device: torch.device, runs: dict[torch.dtype, str], head_width: int) -> str:
        """For the dtypes where this kernel does not run, each reason once."""
        forced = os.environ.get(self.variable)
        reasons: dict[str, list[str]] = {}
        for dtype, name in runs.items():
            if name != kernel.name:
                another = f"{self.variable}={forced}" if forced else f"{name} comes first"
                reason = kernel.obstacle(device, dtype, head_width) or another
                reasons.setdefault(reason, []).append(_plain(dtype))
        if len(reasons) == 1 and not any(name == kernel.name for name in runs.values()):
            return next(iter(reasons))
        return "; ".join(f"{' '.join(dtypes)}: {reason}" for reason, dtypes in reasons.items())


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.lru_cache(maxsize=64)
def _choose(table: Table, forced: str, device: torch.device, dtype: torch.dtype, head_width: int) -> Kernel:
    if not forced:
        return next(kernel for kernel in table.kernels if kernel.obstacle(device, dtype, head_width) is None)
    known = {kernel.name: kernel for kernel in table.kernels}
    if forced not in known:
        want, fix = " or ".join(known), "unset it to choose by device"
        raise value_error(table.variable, got=repr(forced), want=want, fix=fix)
    obstacle = known[forced].obstacle(device, dtype, head_width)
    if obstacle is not None:
        got = f"{forced!r} for {dtype} with heads of {head_width} on {device.type}"
        raise value_error(table.variable, got=got, want=f"one that can serve them ({obstacle})", fix="unset it")
    return known[forced]
