# SPDX-License-Identifier: Apache-2.0
"""Kernels with one thing broken, and the interpreter tests' comparisons on them. Runs in the interpreter's process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from clipkit.engine import torch_backend
from tests.encoders import fused_cases
from tests.interpreter import kernel_cases, sweep_cases, two_form_cases
from tests.interpreter.kernel_cases import unit_features


class Mutation(NamedTuple):
    """One line of a kernel file, what it becomes, and the comparison that must notice."""

    what: str
    file: str
    line: str
    becomes: str
    check: str


def worst(mutation: Mutation | None, check: str, folder: str) -> float:
    """The largest error of a comparison over what the tests allow, on a copy of the kernels with the mutation made."""
    copy = Path(folder) / "kernels"
    with _kernels_from(_mutated_copy(mutation, copy)):
        ratio = CHECKS[check]()
    shutil.rmtree(copy)
    return ratio if ratio == ratio else float("inf")


def _mutated_copy(mutation: Mutation | None, copy: Path) -> Path:
    import clipkit.kernels

    shutil.copytree(clipkit.kernels.__path__[0], copy, ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is not None:
        path = copy / mutation.file
        text = path.read_text(encoding="utf-8")
        assert mutation.line in text, f"{mutation.file} has no `{mutation.line}` any more: say anew how to break it"
        path.write_text(text.replace(mutation.line, mutation.becomes), encoding="utf-8")
    return copy


@contextmanager
def _kernels_from(folder: Path) -> Iterator[None]:
    """Every import of clipkit.kernels inside comes from the folder: what is tested is the tests' own code."""
    import clipkit.kernels

    own = list(clipkit.kernels.__path__)
    clipkit.kernels.__path__[:] = [str(folder)]
    _forget_kernels()
    try:
        yield
    finally:
        clipkit.kernels.__path__[:] = own
        _forget_kernels()


def _forget_kernels() -> None:
    import clipkit.kernels

    for name in [name for name in sys.modules if name.startswith("clipkit.kernels.")]:
        del sys.modules[name]
        # The package remembers its modules as attributes, which `from package import module` asks first.
        vars(clipkit.kernels).pop(name.rpartition(".")[2], None)


def _in_nan(features: torch.Tensor) -> torch.Tensor:
    """The same features as a view into a wider and taller buffer of NaN: whatever is read past an edge shows."""
    rows, width = features.shape
    buffer = torch.full((rows + 80, width + 40), torch.nan, dtype=features.dtype)
    buffer[:rows, :width] = features
    return buffer[:rows, :width]


def _lse_ratio(x: torch.Tensor, y: torch.Tensor, scale: float, diagonal: int | None = None) -> float:
    from clipkit.kernels.row_col_lse import row_col_lse

    results = row_col_lse(_in_nan(x), _in_nan(y), scale, diagonal=diagonal, workspace_bytes=1)
    wanted = kernel_cases.exact(x, y, scale, diagonal)
    gaps = [
        # Equal infinities are no gap.
        torch.where(got.double() == want, 0.0, (got.double() - want).abs()).max()
        for got, want in zip(results, wanted, strict=True)
    ]
    return float(torch.stack(gaps).max()) / kernel_cases.bound(x, y, scale)


def _statistics() -> float:
    x, y = unit_features(140, 10, torch.float32, 0), unit_features(150, 10, torch.float32, 1)
    return max(_lse_ratio(x, y, 20.0), _lse_ratio(x, y, 20.0, diagonal=3))


def _outliers() -> float:
    x, y, _, odd_y = kernel_cases.cone_with_outliers(torch.float32)
    in_cone = y[[j for j in range(len(y)) if j not in odd_y]]
    return max(_lse_ratio(x, in_cone, 100.0), _lse_ratio(in_cone, x, 100.0))


def _faint() -> float:
    """A line whose largest logit is 98 nats under its tile's: a part of its terms is flushed, not all."""
    generator = torch.Generator().manual_seed(3)
    logits = 2.0 - 8.0 * torch.rand(64, 64, generator=generator)
    logits[0, 0] = 100.0
    return max(_lse_ratio(logits, torch.eye(64), 1.0), _lse_ratio(torch.eye(64), logits, 1.0))


def _exponential() -> float:
    return max(_products_ratio(scaled) for scaled in (False, True))


def _products_ratio(scaled: bool) -> float:
    from clipkit.engine import triton_backend

    arguments = sweep_cases.exponential("unit", 70, 140, 10, torch.float32, diagonal=65, scaled=scaled)
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    want = torch_backend.exponential_products(**wide)
    got = triton_backend.exponential_products(**arguments | {name: _in_nan(arguments[name]) for name in ("x", "y")})
    return max(two_form_cases.relative(a, b) for a, b in zip(got, want, strict=True)) / 4e-6


def _anchors() -> float:
    from clipkit.kernels import row_statistics

    arguments = sweep_cases.anchors("unit", 70, 140, 10, torch.float32, diagonal=65, scaled=True)
    arguments |= {name: _in_nan(arguments[name]) for name in ("x", "y")}
    with mock.patch.object(row_statistics, "FEWEST_PROGRAMS", 1):  # several tiles a program
        return max(sweep_cases.anchor_errors(arguments))


def _sigmoid() -> float:
    from clipkit.kernels.sigmoid_sweep import sigmoid_sweep

    x, y = unit_features(70, 10, torch.float32, 0), unit_features(140, 10, torch.float32, 1)
    scale, bias = torch.tensor(10.0), torch.tensor(-3.0)
    wide = (x.double(), y.double(), scale.double(), bias.double())
    want = torch_backend.sigmoid_sweep(*wide, diagonal=65, want_gradients=True)
    got = sigmoid_sweep(_in_nan(x), _in_nan(y), scale, bias, diagonal=65, want_gradients=True)
    return max(two_form_cases.relative(a, b) for a, b in zip(got, want, strict=True)) / 4e-6


def _divergence() -> float:
    forms = two_form_cases.two_forms(70, 130, 10, 6, torch.float32, (20.0, 30.0))
    want = two_form_cases.exact_divergence(forms)
    padded = [tensor if tensor.ndim == 0 else _in_nan(tensor) for tensor in forms]
    got = two_form_cases.kernel_divergence(padded)
    return max(two_form_cases.relative(a, b) for a, b in zip(got, want, strict=True)) / 3e-5


def _nearly_identical() -> float:
    x, y, scale, *_ = two_form_cases.two_forms(70, 66, 40, 40, torch.float32, (100.0, 100.0))
    nudged = x + 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    forms = [nudged, y, scale, x, y, scale]
    want = two_form_cases.exact_divergence(forms).divergence
    return two_form_cases.relative(two_form_cases.kernel_divergence(forms)[0], want) / 1e-2


def _curvature() -> float:
    form, directions = two_form_cases.curvature_case(70, 140, 10, torch.float32, separate=True)
    form[:2] = [_in_nan(tower) for tower in form[:2]]
    return max(two_form_cases.curvature_errors(form, directions, diagonal=65).values()) / 6e-6


def _rotation() -> float:
    return max(_operation(name) for name in ("rotate", "rotate, patch dropout", "rotate, query of class tokens"))


def _gated_norm() -> float:
    return max(_operation(name) for name in ("swiglu_norm", "swiglu_norm, padded"))


def _residual_norm() -> float:
    from clipkit.kernels.residual_norm import add_norm

    # 2048 and less than one is 2048 in fp16: rows whose norm is zero, if it is that of what is kept
    x, branch = torch.full((2, 40), 2048.0).half(), torch.linspace(0, 0.9, 40).half().expand(2, 40)
    _, normed, _, _ = add_norm(x, branch, torch.ones(40), torch.zeros(40), 1e-6)
    names = ("add_norm, 37 wide", "add_post_norm", "add_norm, fp32 residual")
    return max(float(normed.abs().max()) * 1e3, *(_operation(name) for name in names))


def _operation(name: str) -> float:
    """How far it is from float64 over what is allowed, with several rows a program."""
    from clipkit.kernels import norm_launches

    with mock.patch.object(norm_launches, "MOST_PROGRAMS", 8):
        return max(mine / allowed for mine, allowed in fused_cases.errors(name, torch.float16, "triton"))


CHECKS: dict[str, Callable[[], float]] = {
    "statistics": _statistics,
    "outliers": _outliers,
    "faint": _faint,
    "exponential": _exponential,
    "anchors": _anchors,
    "sigmoid": _sigmoid,
    "divergence": _divergence,
    "nearly identical": _nearly_identical,
    "curvature": _curvature,
    "rotation": _rotation,
    "gated norm": _gated_norm,
    "residual norm": _residual_norm,
}
