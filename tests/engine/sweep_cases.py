# SPDX-License-Identifier: Apache-2.0
"""One table of the engine's sweeps: each called on the same pair of towers, with what it needs made in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipkit.engine import sweeps
from clipkit.engine.sweeps import Direction

Results = dict[str, Tensor]


class Pair:
    """Towers x [n, d], y [m, d] and a scale in one dtype, and constants derived from their float64 values."""

    def __init__(self, x: Tensor, y: Tensor, scale: float, dtype: torch.dtype, backend: str) -> None:
        self.x, self.y, self.backend = x.to(dtype), y.to(dtype), backend
        self.logits = float(torch.tensor(scale)) * x.double() @ y.double().T
        self._wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.scale = self.given(torch.tensor(scale))

    def given(self, value: Tensor) -> Tensor:
        """A constant in the type that this call computes in, the same number for every backend."""
        return value.float().to(self._wide)

    @property
    def row_lse(self) -> Tensor:
        return self.given(self.logits.logsumexp(1))

    @property
    def column_lse(self) -> Tensor:
        return self.given(self.logits.logsumexp(0))

    def vector(self, count: int, low: float, high: float) -> Tensor:
        return self.given(torch.linspace(low, high, max(count, 1))[:count])

    def direction(self, seed: int) -> Direction:
        generator = torch.Generator().manual_seed(seed)
        moves = [torch.randn(tower.shape, generator=generator) / 8 for tower in (self.x, self.y)]
        return Direction(*(self.given(move) for move in moves))


def _named(values: tuple[Tensor | None, ...], *names: str) -> Results:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _log_sum_exps(diagonal: int | None) -> Callable[[Pair], Results]:
    def call(p: Pair) -> Results:
        return _named(
            sweeps.log_sum_exps(p.x, p.y, p.scale, diagonal=diagonal, backend=p.backend), "row", "column"
        )  # fmt: skip

    return call


def _anchors(per_row: bool, diagonal: int | None) -> Callable[[Pair], Results]:
    def call(p: Pair) -> Results:
        scale = p.scale * p.vector(len(p.x), 0.5, 2.0) if per_row else p.scale
        return _named(
            sweeps.anchor_statistics(p.x, p.y, scale, diagonal=diagonal, backend=p.backend), "lse", "mean"
        )  # fmt: skip

    return call


def _scaled_exponential(want_x: bool, want_y: bool) -> Callable[[Pair], Results]:
    def call(p: Pair) -> Results:
        """Every row and every column has a scale of its own, and some are turned round."""
        row_scale, column_scale = p.vector(len(p.x), -0.5, 1.25), p.vector(len(p.y), 1.5, 0.25)
        products = sweeps.exponential_products(
            p.x,
            p.y,
            p.scale,
            row_offset=p.given((p.logits * row_scale.double()[:, None]).logsumexp(1)),
            column_offset=p.given((p.logits * column_scale.double()).logsumexp(0)),
            row_scale=row_scale,
            column_scale=column_scale,
            diagonal=1,
            diagonal_weight=p.vector(len(p.x), -1.0, -1e-6),
            want_x=want_x,
            want_y=want_y,
            backend=p.backend,
        )
        return _named(products, "g_y", "gt_x")

    return call


def _exponential(rows: bool, columns: bool, want_x: bool = True, want_y: bool = True) -> Callable[[Pair], Results]:
    def call(p: Pair) -> Results:
        products = sweeps.exponential_products(
            p.x,
            p.y,
            p.scale,
            row_offset=p.row_lse if rows else None,
            column_offset=p.column_lse if columns else None,
            diagonal=2,
            diagonal_weight=p.vector(len(p.x), -1.0, -1e-6),
            want_x=want_x,
            want_y=want_y,
            backend=p.backend,
        )
        return _named(products, "g_y", "gt_x")

    return call


def _sigmoid(want: bool) -> Callable[[Pair], Results]:
    def call(p: Pair) -> Results:
        bias = p.given(torch.tensor(-2.5))
        results = sweeps.sigmoid_sweep(
            p.x, p.y, p.scale, bias, diagonal=1, want_gradients=want, backend=p.backend
        )  # fmt: skip
        return _named(results, "loss", "g_y", "gt_x", "g_sum")

    return call


def _labelled(p: Pair) -> Results:
    """Rows with no target, with one, with one listed twice, with many and out of order."""
    n, m = len(p.x), len(p.y)
    counts = torch.tensor([0, 1, 2, 4])[torch.arange(n) % 4] if m else torch.zeros(n, dtype=torch.int64)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    k = torch.arange(int(offsets[-1]))
    indices = torch.where(k % 5 == 4, k - 1, k) * 7 % max(m, 1)
    weight = p.y * 5.0
    results = sweeps.labelled_sigmoid_sweep(
        p.x, weight, p.vector(m, -3.0, 0.5), offsets, indices, want_gradients=True, backend=p.backend
    )  # fmt: skip
    return _named(results, "loss", "g_y", "gt_x", "g_columns")


def _softmax(want_x: bool, want_y: bool) -> Callable[[Pair], Results]:
    def call(p: Pair) -> Results:
        labels = torch.arange(len(p.x)) * 3 % max(len(p.y), 1)
        results = sweeps.softmax_sweep(
            p.x, p.y, p.scale, labels, want_x=want_x, want_y=want_y, backend=p.backend
        )  # fmt: skip
        return _named(results, "loss", "g_y", "gt_x")

    return call


def _divergence(want: bool) -> Callable[[Pair], Results]:
    def call(p: Pair) -> Results:
        """The teacher sees the student's towers a little turned, at another scale."""
        x, y, scale = p.x.roll(1, 1) * 0.6 + p.x * 0.4, p.y, p.scale * 0.8
        logits = float(scale) * x.double() @ y.double().T
        lses = {"row_student": p.row_lse, "row_teacher": p.given(logits.logsumexp(1))}
        lses |= {"column_student": p.column_lse, "column_teacher": p.given(logits.logsumexp(0))}
        results = sweeps.pair_divergence(
            p.x, p.y, p.scale, x, y, scale, **lses, want_x=want, want_y=want, backend=p.backend
        )  # fmt: skip
        return _named(results, "divergence", "entropy", "g_y", "gt_x")

    return call


def _curvature(directions: int) -> Callable[[Pair], Results]:
    def call(p: Pair) -> Results:
        rows = p.direction(1)
        form = (p.x, p.y, p.scale, rows, rows if directions == 1 else p.direction(2))
        lses = {"row_lse": p.row_lse, "column_lse": p.column_lse}
        sums = sweeps.curvature_sums(*form, **lses, diagonal=0, backend=p.backend)
        softmaxes = sweeps.Softmaxes(
            **lses,
            row_mean=p.vector(len(p.x), -0.1, 0.2),
            column_mean=p.vector(len(p.y), 0.1, -0.2),
            row_miss=p.vector(len(p.x), 1e-6, 1.0),
            column_miss=p.vector(len(p.x), 0.9, 0.1),
            positive_weight=p.vector(len(p.x), -0.3, 0.2),
            diagonal=0,
        )
        products = sweeps.curvature_products(*form, softmaxes, backend=p.backend)
        return _named((*sums, *products), "row_sum", "column_sum", "out_x", "out_y")

    return call


SWEEPS: dict[str, Callable[[Pair], Results]] = {
    "log_sum_exps": _log_sum_exps(None),
    "log_sum_exps_of_negatives": _log_sum_exps(2),
    "anchor_statistics": _anchors(False, None),
    "anchor_statistics_of_negatives": _anchors(True, 1),
    "exponential_products": _exponential(True, True),
    "exponential_products_along_rows": _exponential(True, False, want_y=False),
    "exponential_products_along_columns": _exponential(False, True, want_x=False),
    "exponential_products_scaled": _scaled_exponential(True, True),
    "exponential_products_scaled_anchors": _scaled_exponential(True, False),
    "sigmoid_sweep": _sigmoid(True),
    "sigmoid_sweep_forward": _sigmoid(False),
    "labelled_sigmoid_sweep": _labelled,
    "softmax_sweep": _softmax(True, True),
    "softmax_sweep_keys_only": _softmax(False, True),
    "softmax_sweep_detached": _softmax(True, False),
    "softmax_sweep_forward": _softmax(False, False),
    "pair_divergence": _divergence(True),
    "pair_divergence_forward": _divergence(False),
    "curvature_one_direction": _curvature(1),
    "curvature_two_directions": _curvature(2),
}
