# SPDX-License-Identifier: Apache-2.0
"""The fused operations beside their definitions, and how far results and gradients are from float64: shared by the
tests of every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.encoders import fused
from clipkit.engine.precision import accumulation

EPS = 1e-6
Results = tuple[Tensor, ...]


class Case(NamedTuple):
    """`make(dtype, generator)` gives what has a gradient and what has none; `ours` takes both and a backend; `plain` is
    the same in ordinary torch operations.
    """

    name: str
    make: Callable[[torch.dtype, torch.Generator], tuple[list[Tensor], list[Tensor | None]]]
    ours: Callable[..., Results]
    plain: Callable[..., Results]


def angles(places: int, pairs: int, generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
    """Tables of cosines and sines of any angles."""
    theta = 6.0 * torch.rand(places, pairs, generator=generator, dtype=torch.float64)
    return [theta.cos().to(dtype), theta.sin().to(dtype)]


def rotated(tokens: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None) -> Tensor:
    """Pairs as complex numbers, times e^(i angle); in the accumulation type, rounded at the end."""
    wide = tokens.to(cosines.dtype)
    phase = torch.complex(cosines, sines)
    phase = phase[: tokens.shape[1] - 1] if places is None else phase[places]
    pairs = torch.view_as_complex(wide[:, 1:].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * phase.unsqueeze(-2)).flatten(-2)
    return torch.cat((wide[:, :1], turned), 1).to(tokens.dtype)


def rotation(
    tokens: int, heads: int, width: int, *, dropped: bool = False, class_only: bool = False, name: str
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor | None]]:
        projection = torch.randn(2, tokens, 3, heads, width, generator=generator).to(dtype)
        query, key, _ = projection.unbind(2)
        places = torch.randint(40, (2, tokens - 1), generator=generator) if dropped else None
        tables = angles(40 if dropped else tokens - 1, width // 2, generator, accumulation(query))
        return [query[:, :1] if class_only else query, key], [*tables, places]

    def plain(query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None) -> Results:
        turned = rotated(key, cosines, sines, places)
        return (query.clone() if class_only else rotated(query, cosines, sines, places)), turned

    return Case(name, make, fused.rotate, plain)


def gated(rows: tuple[int, ...], hidden: int, width: int, name: str) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor | None]]:
        gate, value = (2 * torch.randn(*rows, 2 * width, generator=generator)).to(dtype).chunk(2, -1)
        return [gate, value, *_vectors(hidden, dtype, generator)], []

    def ours(*inputs: Tensor, backend: str | None) -> Results:
        return (fused.swiglu_norm(*inputs, eps=EPS, backend=backend),)

    def plain(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor) -> Results:
        gated = F.silu(gate[..., :hidden]) * value[..., :hidden]
        return (F.pad(F.layer_norm(gated, (hidden,), weight, bias, EPS), (0, width - hidden)),)

    return Case(name, make, ours, plain)


def residual(rows: tuple[int, ...], width: int, name: str, *, post: bool, wide: bool = False) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor | None]]:
        x, branch = (torch.randn(*rows, width, generator=generator).to(dtype) for _ in range(2))
        stream = x.to(accumulation(x)) if wide else x
        return [stream, branch, *_vectors(width, stream.dtype, generator)], []

    def ours(*inputs: Tensor, backend: str | None) -> Results:
        if post:
            return (fused.add_post_norm(*inputs, eps=EPS, backend=backend),)
        return fused.add_norm(*inputs, eps=EPS, backend=backend)

    def plain(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> Results:
        if post:
            return (x + F.layer_norm(branch.to(weight.dtype), (width,), weight, bias, EPS),)
        total = x + branch
        return total, F.layer_norm(total, (width,), weight, bias, EPS).to(branch.dtype)

    return Case(name, make, ours, plain)


def _vectors(size: int, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    """Weight and bias."""
    return [(1 + torch.randn(size, generator=generator)).to(dtype), torch.randn(size, generator=generator).to(dtype)]


CASES = [
    rotation(7, 3, 64, name="rotate"),
    rotation(5, 2, 32, dropped=True, name="rotate, patch dropout"),
    rotation(6, 2, 88, dropped=True, class_only=True, name="rotate, query of class tokens"),
    rotation(4, 1, 112, name="rotate, heads of 112"),
    rotation(4, 2, 6, name="rotate, heads of 6"),
    gated((2, 65), 64, 64, "swiglu_norm"),
    gated((3, 25), 130, 144, "swiglu_norm, padded"),
    gated((1,), 7, 7, "swiglu_norm, one row of 7"),
    residual((2, 40), 128, "add_norm", post=False),
    residual((70,), 37, "add_norm, 37 wide", post=False),
    residual((3, 5), 48, "add_norm, fp32 residual", post=False, wide=True),
    residual((2, 40), 128, "add_post_norm", post=True),
    residual((131,), 21, "add_post_norm, fp32 residual", post=True, wide=True),
]
BY_NAME = {case.name: case for case in CASES}
ROUNDING = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 2e-5, torch.bfloat16: 1e-4}
"""Beside what plain torch errs by, relative to the result's norm: fp32 sums in another order, and of 16 bit a result
that fp32 rounds to the other side. (Of a sum of a hundred numbers of both signs, fp32 leaves 1e-6.)"""


def values_and_gradients(
    function: Callable[..., Results], inputs: list[Tensor], constants: list[Tensor | None], **options: Any
) -> list[Tensor]:
    """Results, and the inputs' gradients for fixed incoming ones."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    results = function(*leaves, *constants, **options)
    generator = torch.Generator().manual_seed(9)
    incoming = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r) for r in results]
    return [*results, *torch.autograd.grad(results, leaves, incoming)]


def exact(case: Case, inputs: list[Tensor], constants: list[Tensor | None]) -> list[Tensor]:
    """The definition in float64 for the same rounded inputs, and for incoming gradients as these inputs' results have
    them.
    """
    shapes = case.plain(*inputs, *constants)

    def rounded_gradients(*arguments: Tensor | None) -> Results:
        return tuple(_Rounded.apply(r, s.dtype) for r, s in zip(case.plain(*arguments), shapes, strict=True))

    return values_and_gradients(rounded_gradients, [v.double() for v in inputs], _double(constants))


class _Rounded(torch.autograd.Function):
    """The identity, whose incoming gradient is what another dtype would have made of it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype).double(), None


def _double(constants: list[Tensor | None]) -> list[Tensor | None]:
    return [c.double() if c is not None and c.is_floating_point() else c for c in constants]


def errors(name: str, dtype: torch.dtype, backend: str, device: str = "cpu") -> list[tuple[float, float]]:
    """For each result and gradient (its relative error, what is allowed: plain torch's in the same dtype and a bit)."""
    case = BY_NAME[name]
    inputs, constants = case.make(dtype, torch.Generator().manual_seed(0))
    want = exact(case, inputs, constants)
    inputs, constants = [_on(value, device) for value in inputs], [c if c is None else c.to(device) for c in constants]
    ours = values_and_gradients(case.ours, inputs, constants, backend=backend)
    plain = values_and_gradients(case.plain, inputs, constants)
    assert [(t.dtype, t.shape) for t in ours] == [(t.dtype, t.shape) for t in plain]
    return [
        (_relative(mine, true), _relative(peer, true) + ROUNDING[dtype])
        for mine, peer, true in zip(ours, plain, want, strict=True)
    ]


def _on(value: Tensor, device: str) -> Tensor:
    """There, with its strides: the slices of a projection stay slices."""
    if device == "cpu":
        return value
    base = value._base if value._base is not None else value
    return base.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got.detach().cpu().double() - want.detach()).norm() / want.detach().norm().clamp_min(1e-300))
