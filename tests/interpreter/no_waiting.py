# SPDX-License-Identifier: Apache-2.0
"""Finds what would make the host wait for a device, on tensors that are on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result on a device the host must see: a number, or a shape that depends on data.
WAITING = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2",
    "unique_dim", "unique_consecutive", "bincount", "allclose",
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Raises at the first operator that would wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.overloadpacket.__name__, kwargs or {}
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        unsized = name == "repeat_interleave" and options.get("output_size") is None
        if name in WAITING or by_mask or unsized:
            raise AssertionError(f"{func} would wait for the device")
        if func.namespace == "clipkit":  # a mode does not see what an operator does within, unless it goes there
            with self:
                return OPDEFS[func.name()]._init_fn(*args, **options)
        return func(*args, **options)


def what_waits(call: Callable[[], object]) -> str:
    try:
        with NoWaiting():
            call()
    except AssertionError as error:
        return str(error)
    return ""


def sweep_waits(name: str, arguments: dict[str, Any]) -> str:
    """What in a sweep of the Triton backend would wait, or ""."""
    from clipkit.engine import triton_backend

    return what_waits(lambda: getattr(triton_backend, name)(**arguments))


def loss_waits(name: str) -> str:
    """What would wait in forward and backward of a loss of the table on the Triton backend, or ""."""
    from tests.reference.cases import BY_NAME, value_and_gradients

    case = BY_NAME[name]
    inputs, constants = case.make(9, 8, torch.float32)
    # Values of index tensors are checked where that needs no wait: take these for tensors of a device.
    modules = ("linear_bce", "info_nce")
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch(f"clipkit.functional.{module}.readable", return_value=False))
        return what_waits(
            lambda: value_and_gradients(lambda **values: case.ours(**values, backend="triton"), inputs, constants)
        )


def known_waits() -> list[str]:
    """Three things that wait, as the mode reports them."""
    values = torch.ones(3)
    calls: list[Callable[[], object]] = [
        lambda: float(values.sum()),
        lambda: values[values > 0],
        lambda: torch.equal(values, values),
    ]
    return [what_waits(call) for call in calls]
