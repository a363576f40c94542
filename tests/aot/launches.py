# SPDX-License-Identifier: Apache-2.0
"""The launches a sweep makes on a card, found without one: its own host code runs on tensors that hold no data, and
every launch is written down instead of made. What is compiled offline is therefore what a card would compile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ELEMENTS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int8: "*i8", torch.int64: "*i64",
    torch.int32: "*i32", torch.bool: "*i1", torch.uint8: "*u8",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg", "num_ctas")

Launch = dict[str, Any]


def recorded(call: Callable[[], object], arch: int) -> list[Launch]:
    """What `call` launches on a card of compute capability `arch`, each kind of launch once."""
    launches: list[Launch] = []
    with _recording(launches, arch):
        call()
    return [launch for index, launch in enumerate(launches) if launch not in launches[:index]]


@contextmanager
def _recording(launches: list[Launch], arch: int) -> Iterator[None]:
    from clipkit.kernels import config
    from triton.runtime.jit import JITFunction

    def run(function: Any, *arguments: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
        launches.append(describe(function, arguments, named))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(config, "capability_of", return_value=arch),
    ):
        yield


def describe(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    """A launch as data: types of the arguments, constants, what is a multiple of 16, compiler options."""
    options = {name: named.pop(name) for name in _OPTIONS if name in named}
    values = dict(zip(function.arg_names, arguments, strict=False)) | named
    launch: Launch = {
        "module": function.fn.__module__,
        "kernel": function.fn.__name__,
        "signature": {},
        "constants": {},
        "divisible": [],
        "options": options,
    }
    for parameter in function.params:
        _describe_argument(launch, parameter, values[parameter.name])
    return launch


def _describe_argument(launch: Launch, parameter: Any, value: Any) -> None:
    """As triton specialises it: a stride of 1 becomes a constant, pointers and numbers may be known multiples of 16."""
    name, aligned = parameter.name, False
    if parameter.is_constexpr or value is None:
        kind = "constexpr"
    elif isinstance(value, torch.Tensor):
        kind = _ELEMENTS[value.dtype]
        aligned = value.storage_offset() * value.itemsize % 16 == 0
    elif isinstance(value, int):
        special = not parameter.do_not_specialize
        kind = "constexpr" if special and value == 1 else "i32" if -(2**31) <= value < 2**31 else "i64"
        aligned = special and kind != "constexpr" and value % 16 == 0
    else:
        kind = "fp32"
    launch["signature"][name] = kind
    if kind == "constexpr":
        launch["constants"][name] = value
    if aligned:
        launch["divisible"].append(name)


def sweep_launches(sweep: str, dtype: str, shape: tuple[int, int, int], arch: int) -> list[Launch]:
    """What one sweep of SWEEPS launches for towers [rows, width] and [columns, width] of a dtype."""
    return recorded(lambda: SWEEPS[sweep](_Inputs(DTYPES[dtype], *shape)), arch)


class _Inputs:
    """Towers and vectors of a problem, without data."""

    def __init__(self, dtype: torch.dtype, rows: int, columns: int, width: int):
        self.x = torch.empty(rows, width, dtype=dtype, device="meta")
        self.y = torch.empty(columns, width, dtype=dtype, device="meta")
        self.scale = torch.empty(1, device="meta")
        self.row, self.column = (torch.empty(size, device="meta") for size in (rows, columns))
        self.labels = torch.empty(rows, dtype=torch.int64, device="meta")

    @property
    def kept(self) -> torch.Tensor:
        """Memory for S, without gaps as the engine's workspace has it."""
        return torch.empty(len(self.x), len(self.y), device="meta")

    @property
    def kept_wave(self) -> torch.Tensor:
        """The same of a wave of detached keys, whose rows are aligned."""
        from clipkit.kernels.form import Form
        from clipkit.kernels.kept import unwritten

        return unwritten(Form.of(self.x, self.y, self.scale), len(self.x))


def _statistics(given: _Inputs, **options: Any) -> None:
    from clipkit.kernels.row_col_lse import row_col_lse

    row_col_lse(given.x, given.y, given.scale, **options)


def _statistics_in_bands(given: _Inputs) -> None:
    _statistics(given, workspace_bytes=1)


def _exponential(
    given: _Inputs,
    *,
    by_row: bool = True,
    by_column: bool = True,
    labels: bool = False,
    scales: bool = False,
    kept: bool = False,
) -> None:
    from clipkit.kernels.exponential_products import exponential_products

    exponential_products(
        given.x,
        given.y,
        given.scale,
        row_offset=given.row if by_row else None,
        column_offset=given.column if by_column else None,
        row_scale=given.row if scales and by_row else None,
        column_scale=given.column if scales and by_column else None,
        own_weight=given.row,
        labels=given.labels if labels else None,
        kept=None if not kept else given.kept_wave if labels else given.kept,
    )


def _rows_alone(given: _Inputs, *, keep: bool = False) -> None:
    from clipkit.kernels.form import Form, Own
    from clipkit.kernels.row_statistics import row_lse

    form, own = Form.of(given.x, given.y, given.scale), Own("labels", labels=given.labels)
    row_lse(form, own, kept=given.kept_wave if keep else None)


def _anchors(given: _Inputs, *, scales: bool) -> None:
    from clipkit.kernels.row_statistics import anchor_statistics

    anchor_statistics(given.x, given.y, given.row if scales else given.scale[0], diagonal=0)


def _sigmoid(given: _Inputs, *, wanted: bool = True) -> None:
    from clipkit.kernels.sigmoid_sweep import sigmoid_sweep

    sigmoid_sweep(given.x, given.y, given.scale, given.scale, diagonal=0, want_gradients=wanted)


def _labelled(given: _Inputs, *, wanted: bool = True) -> None:
    from clipkit.kernels.sigmoid_sweep import labelled_sigmoid_sweep

    offsets = torch.empty(len(given.labels) + 1, dtype=torch.int64, device="meta")
    labelled_sigmoid_sweep(given.x, given.y, given.column, offsets, given.labels, want_gradients=wanted)


def _divergence(given: _Inputs, *, wanted: bool = True) -> None:
    from clipkit.kernels.form import Form
    from clipkit.kernels.pair_divergence import LogSumExps, pair_divergence

    form = Form.of(given.x, given.y, given.scale)
    pair_divergence(
        form, form, LogSumExps(given.row, given.row, given.column, given.column), want_x=wanted, want_y=wanted
    )


def _curvature(given: _Inputs, *, separate: bool) -> None:
    from clipkit.kernels.curvature import Softmaxes, curvature_products, curvature_sums
    from clipkit.kernels.form import Form

    from clipkit.engine.sweeps import Direction

    form = Form.of(given.x, given.y, given.scale)
    across, down = (Direction(given.x.float(), given.y.float()) for _ in range(2))
    directions = (across, down if separate else across)
    curvature_sums(form, *directions, row_lse=given.row, column_lse=given.column, diagonal=0)
    vectors = (given.row, given.column, given.row, given.column, *[given.row] * 3)
    curvature_products(form, *directions, Softmaxes(*vectors, 0))


def _rotation(given: _Inputs) -> None:
    """Slices of one projection, every head width of the models; patch dropout forward, all patches backward."""
    from clipkit.kernels.rotation import rotate

    places = torch.empty(8, 128, dtype=torch.int64, device="meta")
    for width in (32, 64, 88, 112, 128):
        tokens = torch.empty(8, 129, 3, 16, width, dtype=given.x.dtype, device="meta")
        table = torch.empty(128, width // 2, device="meta")
        query, key, _ = tokens.unbind(2)
        rotate(query, key, table, table, places, inverse=False)
        rotate(query.contiguous(), key.contiguous(), table, table, None, inverse=True)


def _gated_norm(given: _Inputs) -> None:
    """EVA02-B's hidden width, halves of one projection, and EVA02-L's, padded."""
    from clipkit.kernels.swiglu_norm import swiglu_norm, swiglu_norm_gradients

    for hidden, width in ((2048, 2048), (2730, 2752)):
        gate, value = torch.empty(6304, 2 * width, dtype=given.x.dtype, device="meta").chunk(2, 1)
        weight = torch.empty(hidden, dtype=given.x.dtype, device="meta")
        out, mean, rstd = swiglu_norm(gate, value, weight, weight, 1e-6)
        swiglu_norm_gradients(out, gate, value, weight, mean, rstd)


def _residual_norm(given: _Inputs) -> None:
    """The narrowest and the widest model, and fp32 rows beside a branch of 16 bit."""

    from clipkit.kernels.residual_norm import add_norm, add_post_norm, norm_gradients

    for width, wide in ((768, False), (1792, False), (1024, True)):
        branch = torch.empty(6304, width, dtype=given.x.dtype, device="meta")
        x = branch.float() if wide else torch.empty_like(branch)
        weight = torch.empty(width, device="meta", dtype=x.dtype)
        total, normed, mean, rstd = add_norm(x, branch, weight, weight, 1e-6)
        norm_gradients(normed, total, total, weight, mean, rstd)
        out, mean, rstd = add_post_norm(x, branch, weight, weight, 1e-6)
        norm_gradients(out, None, branch, weight, mean, rstd)


SWEEPS: dict[str, Callable[[_Inputs], None]] = {
    "log_sum_exps": _statistics,
    "log_sum_exps, no diagonal": lambda given: _statistics(given, diagonal=0),
    "log_sum_exps, bands": _statistics_in_bands,
    "log_sum_exps, kept": lambda given: _statistics(given, kept=given.kept),
    "log_sum_exps, rows, labels": _rows_alone,
    "log_sum_exps, rows, kept": lambda given: _rows_alone(given, keep=True),
    "anchor_statistics": lambda given: _anchors(given, scales=False),
    "anchor_statistics, scales": lambda given: _anchors(given, scales=True),
    "exponential": _exponential,
    "exponential, rows": lambda given: _exponential(given, by_column=False),
    "exponential, columns": lambda given: _exponential(given, by_row=False),
    "exponential, scales": lambda given: _exponential(given, scales=True),
    "exponential, kept": lambda given: _exponential(given, kept=True),
    "exponential, labels, kept": lambda given: _exponential(given, by_column=False, labels=True, kept=True),
    "exponential, labels": lambda given: _exponential(given, by_column=False, labels=True),
    "sigmoid": _sigmoid,
    "sigmoid, value only": lambda given: _sigmoid(given, wanted=False),
    "labelled sigmoid": _labelled,
    "labelled sigmoid, value only": lambda given: _labelled(given, wanted=False),
    "divergence": _divergence,
    "divergence, value only": lambda given: _divergence(given, wanted=False),
    "curvature": lambda given: _curvature(given, separate=False),
    "curvature, four-term": lambda given: _curvature(given, separate=True),
    "rotation": _rotation,
    "gated norm": _gated_norm,
    "residual norm": _residual_norm,
}
"""Every way the engine calls a kernel. A kernel that none of them launches fails test_every_kernel_is_compiled."""


def entry_kernels() -> set[str]:
    """The kernels of kernels/ that the host launches: jit functions that no other one calls."""
    import importlib
    import re
    from pathlib import Path

    import clipkit.kernels
    from triton.runtime.jit import JITFunction

    names = [path.stem for path in Path(clipkit.kernels.__path__[0]).glob("*.py") if path.stem != "__init__"]
    modules = [importlib.import_module(f"clipkit.kernels.{name}") for name in names]
    functions = {
        value.fn.__name__: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, JITFunction)
    }
    called = {
        name
        for name, (caller, function) in itertools.product(functions, functions.items())
        if name != caller and re.search(rf"\b{name}\(", function.src)
    }
    return set(functions) - called
