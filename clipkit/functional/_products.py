# SPDX-License-Identifier: Apache-2.0
"""From the engine's products G Y and Gᵀ X to the gradients of features and scale, the same for every loss of S = scale
· X Yᵀ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation, row_chunks, widen
from clipkit.engine.workspace import Workspace
from clipkit.functional._ops import Gradients, only_wanted
from clipkit.parallel import Layout, scatter_sum_rows, sum_over_ranks


def positive_logits(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """S_ii = scale · <x_i, y_i>, [n], in the accumulation type."""
    products = x.new_empty(len(x), dtype=accumulation(x))
    for rows in row_chunks(x):
        products[rows] = torch.linalg.vecdot(widen(x[rows]), widen(y[rows]))
    return scale * products


def products_wanted(wants: Sequence[bool]) -> tuple[bool, bool]:
    """Which of G Y and Gᵀ X the gradients of (x, y, scale) need: each tower its own, the scale alone one of them."""
    want_x, want_y, want_scale = wants
    return want_x or (want_scale and not want_y), want_y


@dataclass(frozen=True)
class Products:
    """This rank's rows of G Y [n, d] and Gᵀ X [n, d], summed over all pairs, unscaled, in the accumulation type.

    None where not wanted.
    """

    g_y: Tensor | None
    gt_x: Tensor | None

    @classmethod
    def collect(cls, g_y: Tensor | None, gt_x: Tensor | None, layout: Layout) -> Products:
        """From what a sweep returns: Gᵀ X has all N rows there, each summed over this rank's pairs only."""
        return cls(g_y, None if gt_x is None else scatter_sum_rows(gt_x, layout))

    @classmethod
    def exponential(
        cls,
        x: Tensor,
        all_y: Tensor,
        scale: Tensor,
        layout: Layout,
        *,
        row_offset: Tensor | None,
        column_offset: Tensor | None,
        diagonal_weight: Tensor,
        wants: Sequence[bool],
        backend: str,
        workspace: Workspace | None = None,
    ) -> Products:
        """Of `clipkit.engine.sweeps.exponential_products`: `all_y` [N, d] is every rank's y, positives are `x`'s own
        rows.
        """
        want_x, want_y = products_wanted(wants)
        products = sweeps.exponential_products(
            x,
            all_y,
            scale,
            row_offset=row_offset,
            column_offset=column_offset,
            diagonal=layout.start,
            diagonal_weight=diagonal_weight,
            want_x=want_x,
            want_y=want_y,
            workspace=workspace,
            backend=backend,
        )
        return cls.collect(*products, layout)

    def gradients(
        self, x: Tensor, y: Tensor, scale: Tensor, layout: Layout, *, unit: float, wants: Sequence[bool]
    ) -> Gradients:
        """Gradients of x, y and scale when ∂L/∂S = unit · G, empty where `wants` says that this rank needs none.

        Features carry the factor world_size that the mean of DDP or FSDP takes away; the scale's gradient is global
        already.
        """
        scale_grad = unit * self.along_scale(x, y, layout)  # before the products are scaled where they are
        to_features = unit * layout.world_size * scale
        towers = [None if product is None else product.mul_(to_features) for product in (self.g_y, self.gt_x)]
        return only_wanted(wants, (*towers, scale_grad), like=scale_grad)

    def along_scale(self, x: Tensor, y: Tensor, layout: Layout) -> Tensor:
        """Σ_ij G_ij <x_i, y_j> over all ranks, from either product: <X, G Y> = <Y, Gᵀ X>, O(n·d) and fp32
        throughout.
        """
        product, tower = (self.g_y, x) if self.g_y is not None else (self.gt_x, y)
        assert product is not None, "at least one product must be wanted"
        along = product.new_zeros(())
        for rows in row_chunks(product):
            along += torch.sum(product[rows] * tower[rows])
        return sum_over_ranks(along, layout)
