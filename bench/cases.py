# SPDX-License-Identifier: Apache-2.0
"""What the throughput suite measures: a case is a loss at one batch, width, dtype and direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.errors import value_error

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DIRECTIONS = ("fwd", "fwd+bwd")
SCALE = 1 / 0.07
BIAS = -10.0


class Products(NamedTuple):
    """How many products of [N, d] with [d, N] a method needs that stores no N x N matrix, by their shape.

    `similar` is X Yᵀ, `left` is G Y, `right` is Gᵀ X; each is one unit of 2·N²·d FLOP.
    """

    similar: int
    left: int = 0
    right: int = 0

    @property
    def units(self) -> int:
        """All of them."""
        return sum(self)


LOSSES: dict[str, tuple[Products, Products]] = {
    # The statistics need S once; the gradients need S again, G Y and Gᵀ X.
    "clip": (Products(1), Products(2, 1, 1)),
    "info_nce": (Products(1), Products(2, 1, 1)),
    "global_contrastive": (Products(1), Products(2, 1, 1)),
    # No normaliser: loss and gradients come from one S.
    "siglip": (Products(1), Products(1, 1, 1)),
    "linear_bce": (Products(1), Products(1, 1, 1)),
    # Two forms, the student's and the teacher's.
    "crd": (Products(2), Products(4, 1, 1)),
    # Two row softmaxes whose keys want no gradient: each needs S once and G Y once.
    "icl": (Products(2), Products(2, 2, 0)),
    # Both models' log-sum-exps and gradient fields, then a Hessian-vector product with a form twice as wide.
    "gd": (Products(4, 2, 2), Products(10, 4, 4)),
}
"""For each loss, the floor of the forward and of forward plus backward."""


@dataclass(frozen=True)
class Case:
    """A loss at one size. Variants (clipkit's backends, the peers) are compared within a case, never across."""

    loss: str
    rows: int
    width: int
    dtype: str
    direction: str

    def __post_init__(self) -> None:
        for name, got, known in (
            ("loss", self.loss, tuple(LOSSES)),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("direction", self.direction, DIRECTIONS),
        ):
            if got not in known:
                raise value_error(name, got=repr(got), want=f"one of {', '.join(known)}", fix="choose one of them")
        for name, size in (("N", self.rows), ("d", self.width)):
            if size < 1:
                raise value_error(name, got=size, want="a positive whole number", fix="pass a size of at least 1")

    @property
    def products(self) -> Products:
        """The floor's matrix products."""
        return LOSSES[self.loss][DIRECTIONS.index(self.direction)]

    def __str__(self) -> str:
        return f"{self.loss} N={self.rows} d={self.width} {self.dtype} {self.direction}"


@dataclass(frozen=True)
class Tensors:
    """Inputs of every loss: unit rows [N, d] of student and teacher, the scale and bias, per-sample state [N]."""

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor
    teacher_image: Tensor
    teacher_text: Tensor
    log_u: Tensor

    @property
    def wanted(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What gradients are taken of, where the loss has it."""
        return self.image, self.text, self.scale, self.bias


def tensors(case: Case, device: str, rows: int | None = None) -> Tensors:
    """Inputs of `case` (of `rows` rows instead of its own), the same for the same seed and device."""
    count = case.rows if rows is None else rows
    generator = torch.Generator(device).manual_seed(0)

    def features(needed: bool = True) -> Tensor:
        drawn = torch.randn(count if needed else 1, case.width, generator=generator, device=device)
        return torch.nn.functional.normalize(drawn, dim=1).to(DTYPES[case.dtype])

    has_teacher = case.loss in ("crd", "icl", "gd")
    return Tensors(
        image=features().requires_grad_(),
        text=features().requires_grad_(),
        scale=torch.tensor(SCALE, device=device, requires_grad=True),
        bias=torch.tensor(BIAS, device=device, requires_grad=True),
        teacher_image=features(has_teacher),
        teacher_text=features(has_teacher),
        log_u=torch.zeros(count, device=device),
    )
