# SPDX-License-Identifier: Apache-2.0
"""Listens to the library's operators."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Calls of the library's operators, as they reach their kernels."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "clipkit":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))
