# SPDX-License-Identifier: Apache-2.0
"""The compiled module as the CUDA kernels need it: is it there, on which stream, and are the tensors what it takes."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from clipkit.errors import type_error, value_error

ON_HOST_VARIABLE = "CLIPKIT_CUDA_ON_HOST"
OLDEST_CAPABILITY = (8, 0)
"""PTX for sm_80 is always inside, so every later card can run at least that."""


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve such tensors here, or None."""
    module, missing = _load()
    if module is None:
        return missing
    if dtype == torch.float64:
        return "its kernels compute in fp32"
    if device.type == "cpu" and os.environ.get(ON_HOST_VARIABLE) == "1":
        return None
    info = module.build_info()
    if not info["cuda"]:
        return "clipkit was installed without its CUDA part (CLIPKIT_BUILD_CUDA=1 pip install, with nvcc)"
    compiled = f"compiled for sm_{info['cuda_archs'].replace(',', ', sm_')}, not yet run on a card"
    if device.type != "cuda":
        return f"{compiled}; it needs a CUDA device (or {ON_HOST_VARIABLE}=1, a slow simulation)"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"it needs compute capability 8.0, the card has {capability[0]}.{capability[1]}"
    return None


def native() -> ModuleType:
    """`clipkit._native`.

    Raises:
        RuntimeError: it was not built.
    """
    module, missing = _load()
    if module is None:
        raise RuntimeError(missing)
    return module


@contextlib.contextmanager
def stream_for(like: Tensor) -> Iterator[int | None]:
    """What the compiled functions take as `stream`: torch's current one on the tensor's device, made current; None for
    CPU tensors, on which the launch runs thread after thread."""
    if like.device.type == "cpu":
        yield None
        return
    with torch.cuda.device(like.device):
        yield torch.cuda.current_stream().cuda_stream


def check_tensor(
    name: str, tensor: Tensor, like: Tensor, *, dtype: torch.dtype, shape: tuple[int | None, ...] | None = None
) -> None:
    """The tensor is contiguous, of that type and shape (None: any size), and on the device of `like`.

    Raises:
        TypeError: another type.
        ValueError: another shape or device, or strides.
    """
    if tensor.dtype != dtype:
        raise type_error(name, got=tensor.dtype, want=str(dtype), fix=f"pass {name}.to({dtype})")
    if tensor.device != like.device:
        raise value_error(name, got=f"a tensor on {tensor.device}", want=str(like.device), fix="move it there")
    if shape is not None and not _fits(tuple(tensor.shape), shape):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise value_error(name, got=f"shape {tuple(tensor.shape)}", want=f"[{wanted}]", fix="check the batch")
    if not tensor.is_contiguous():
        raise value_error(name, got=f"strides {tensor.stride()}", want="a contiguous tensor", fix="pass .contiguous()")


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        from clipkit import _native as module
    except ImportError as error:
        return None, f"clipkit was installed without its compiled part ({error})"
    return module, None
