# SPDX-License-Identifier: Apache-2.0
"""From the engine's products G Y and Gᵀ X to the gradients of features and scale, the same for every loss of S = scale
· X Yᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.engine.precision import accumulation, widen
from clipkit.functional._ops import nothing, or_nothing, wants_gradient
from clipkit.parallel import Layout, scatter_sum_rows, sum_over_ranks


def positive_logits(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """S_ii = scale · <x_i, y_i>, [n], in the accumulation type."""
    return scale * torch.linalg.vecdot(widen(x), widen(y))


@dataclass(frozen=True)
class Products:
    """G Y [n, d] and Gᵀ X, unscaled, in the accumulation type; None where not wanted.

    `gt_x` has all N rows, summed over this rank's pairs only, until `collect` brings each rank its own rows, summed
    over all.
    """

    g_y: Tensor | None
    gt_x: Tensor | None

    def collect(self, layout: Layout) -> Products:
        """Sum Gᵀ X over ranks and keep this rank's rows."""
        return Products(self.g_y, None if self.gt_x is None else scatter_sum_rows(self.gt_x, layout))

    def along_scale(self, x: Tensor, y: Tensor, layout: Layout) -> Tensor:
        """Σ_ij G_ij <x_i, y_j> over all ranks, from either product: <X, G Y> = <Y, Gᵀ X>, O(n·d) and fp32
        throughout.
        """
        if self.g_y is not None:
            return sum_over_ranks(torch.sum(self.g_y * x), layout)
        assert self.gt_x is not None, "at least one product must be wanted"
        return sum_over_ranks(torch.sum(self.gt_x * y), layout)

    def unit_gradients(
        self, x: Tensor, y: Tensor, scale: Tensor, unit: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, y and scale in the accumulation type when ∂L/∂S = unit · G; empty for a product that is
        missing.

        Features carry the factor world_size that the mean of DDP or FSDP takes away; the scale's gradient is global
        already.
        """
        to_features = unit * scale * layout.world_size
        grad_x = None if self.g_y is None else self.g_y * to_features
        grad_y = None if self.gt_x is None else self.gt_x * to_features
        return or_nothing(grad_x, unit), or_nothing(grad_y, unit), unit * self.along_scale(x, y, layout)


def products_wanted(x: Tensor, y: Tensor) -> tuple[bool, bool]:
    """Which of G Y and Gᵀ X this rank's backward needs: its own for each tower, and for the scale alone one of them."""
    want_y = wants_gradient(y)
    return wants_gradient(x) or not want_y, want_y


def fake_gradients(
    grad: Tensor, x: Tensor, y: Tensor, scale: Tensor, want_x: bool = True, want_y: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of `Products.unit_gradients`, for the operators that end in it."""
    dtype = accumulation(x)
    return (
        torch.empty_like(x, dtype=dtype) if want_x else nothing(grad),
        torch.empty_like(y, dtype=dtype) if want_y else nothing(grad),
        torch.empty_like(scale),
    )
