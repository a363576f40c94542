# SPDX-License-Identifier: Apache-2.0
"""Memory for speed: a form's products kept from the sweep that makes its statistics to the one that uses them."""

from __future__ import annotations

from torch import Tensor

from clipkit.engine.precision import accumulation


class Workspace:
    """What `log_sum_exps` may keep for `exponential_products` of the same towers and diagonal on the same backend.

    All n·m products <x_i, y_j> are kept, unscaled and in the accumulation type, where they fit into the budget and the
    backend gains by it; then the second sweep makes no X Yᵀ of its own, and the two take three products, not four. They
    are used once: the second sweep makes its weights in their place.
    """

    def __init__(self, budget: int) -> None:
        """`budget` in bytes."""
        self._budget = budget
        self._products: Tensor | None = None

    def keep(self, rows: int, columns: int, like: Tensor) -> Tensor | None:
        """Where a backend puts the products of towers such as `like`, [rows · columns] in an order of its own; None
        where they do not fit.
        """
        dtype = accumulation(like)
        fits = 0 < rows * columns * dtype.itemsize <= self._budget
        self._products = like.new_empty(rows * columns, dtype=dtype) if fits else None
        return self._products

    def take(self) -> Tensor | None:
        """What was kept, if anything. The caller owns it then: it is freed when the caller is done."""
        products, self._products = self._products, None
        return products
