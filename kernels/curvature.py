# SPDX-License-Identifier: Apache-2.0
"""The Hessian-vector product of the CLIP loss, for gradient distillation: the launch code around two kernels.

16-bit features are computed with in fp16, bf16 ones too: divided by a power of two that brings the largest to 1 their
eight bits survive, and directions and weights, which have to be rounded, keep eleven bits where bf16 has eight. The
copies that this takes are as wide as whole K blocks, so that no load needs a mask.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import triton

from .config import TileConfig
from .form import Form, on_device_of
from .tile_curvature_sums import tile_curvature_sums
from .tile_curvature_weights import tile_curvature_weights
from .waves import DEFAULT_WORKSPACE_BYTES, add_product, waves, weight_unit

SUMS_WORKSPACE_BYTES = 64 << 20
_WIDEST_BLOCK = 64


class Direction(Protocol):
    """Where rows (x [N, d]) and columns (y [M, d]) of a form move to, fp32."""

    @property
    def x(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def y(self) -> torch.Tensor: ...  # noqa: D102


class Softmaxes(NamedTuple):
    """Of the form whose curvature is asked for, fp32: log-sum-exps of rows [N] and columns [M], their means of R, and,
    for row i at column diagonal + i, the negated values [N] of P - I and Q - I and the value of M.
    """

    row_lse: torch.Tensor
    column_lse: torch.Tensor
    row_mean: torch.Tensor
    column_mean: torch.Tensor
    row_miss: torch.Tensor
    column_miss: torch.Tensor
    positive_weight: torch.Tensor
    diagonal: int

    def contiguous(self) -> Softmaxes:
        """The same, each vector without gaps."""
        vectors = {name: value.contiguous() for name, value in self._asdict().items() if name != "diagonal"}
        return self._replace(**vectors)


class _Scaled(NamedTuple):
    """Features divided by a power of two: `values` are what kernels multiply, factor [1] fp32 what was divided by."""

    values: torch.Tensor
    factor: torch.Tensor


class _Along(NamedTuple):
    """A direction as kernels multiply it: R = scale * (X yᵀ + x Yᵀ) with the form's values X and Y; the direction is
    `step` times x and y times the factors of the form's towers.
    """

    x: torch.Tensor
    y: torch.Tensor
    scale: torch.Tensor
    step: torch.Tensor


class _Problem(NamedTuple):
    """What both sweeps multiply: `factors` are the towers', `down` is `across` if there is only one direction."""

    form: Form
    factors: tuple[torch.Tensor, torch.Tensor]
    across: _Along
    down: _Along

    @classmethod
    def of(cls, form: Form, along_rows: Direction, along_columns: Direction) -> _Problem:
        """Everything in the type that is multiplied in: fp16 for 16-bit features, fp32 for fp32."""
        x, y = _scaled(form.x), _scaled(form.y)
        inner = form._replace(x=x.values, y=y.values, scale=form.scale * x.factor * y.factor)
        across = _along(along_rows, x, y, inner)
        down = across if along_columns is along_rows else _along(along_columns, x, y, inner)
        return cls(inner, (x.factor, y.factor), across, down)

    def band(self, start: int, stop: int) -> _Problem:
        """Some consecutive rows."""
        across, down = (along._replace(x=along.x[start:stop]) for along in (self.across, self.down))
        return self._replace(form=self.form.band(start, stop), across=across, down=down if self.separate else across)

    @property
    def separate(self) -> bool:
        """Whether rows and columns have directions of their own."""
        return self.down is not self.across

    def arguments(self) -> tuple[object, ...]:
        """How the argument list of both kernels begins."""
        return *self.form.arguments(), *self.across[:3], *self.down[:3]


def curvature_sums(
    form: Form,
    along_rows: Direction,
    along_columns: Direction,
    *,
    row_lse: torch.Tensor,
    column_lse: torch.Tensor,
    diagonal: int,
    config: TileConfig | None = None,
    workspace_bytes: int = SUMS_WORKSPACE_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ_j P_ij R_ij [N], Σ_i Q_ij R'_ij [M]) in fp32 without the pairs (i, diagonal + i): R along `along_rows`, R'
    along `along_columns`. Partial sums take at most about `workspace_bytes`.
    """
    row_sum = torch.zeros(form.rows, dtype=torch.float32, device=form.x.device)
    column_sum = torch.zeros(form.columns, dtype=torch.float32, device=form.x.device)
    if form.rows == 0 or form.columns == 0:
        return row_sum, column_sum
    row_lse, column_lse = row_lse.contiguous(), column_lse.contiguous()
    problem = _Problem.of(form, along_rows, along_columns)
    config = config or problem.form.tile_for("curvature")
    bytes_per_row = 4 * (triton.cdiv(form.columns, config.block_n) + triton.cdiv(form.columns, config.block_m))
    height = config.block_m * max(1, workspace_bytes // (config.block_m * bytes_per_row))
    with on_device_of(form.x):
        for start in range(0, form.rows, height):
            stop = min(start + height, form.rows)
            band = problem.band(start, stop)
            across, down = _sums(band, row_lse[start:stop], column_lse, diagonal + start, config)
            torch.sum(across, 0, out=row_sum[start:stop])
            column_sum += down.sum(0)
    return row_sum, column_sum


def _sums(
    problem: _Problem, row_lse: torch.Tensor, column_lse: torch.Tensor, diagonal: int, config: TileConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row sums [column tiles, N] and column sums [row tiles, M] of all tiles."""
    form = problem.form
    row_sums = row_lse.new_empty((triton.cdiv(form.columns, config.block_n), form.rows))
    column_sums = row_lse.new_empty((triton.cdiv(form.rows, config.block_m), form.columns))
    tile_curvature_sums[form.tile_grid(config)](
        *problem.arguments(),
        row_lse,
        column_lse,
        diagonal,
        row_sums,
        column_sums,
        **form.constants(config),
        GROUP=config.group,
        EVEN=form.fills(config),
        SEPARATE=problem.separate,
    )
    return row_sums, column_sums


def curvature_products(
    form: Form,
    along_rows: Direction,
    along_columns: Direction,
    softmaxes: Softmaxes,
    *,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(M Y + (P-I) along_rows.y + (Q-I) along_columns.y [N, d], Mᵀ X + (P-I)ᵀ along_rows.x + (Q-I)ᵀ along_columns.x
    [M, d]) in fp32, for M = P∘(R - row_mean) + Q∘(R' - column_mean) off the positives.
    """
    if form.rows == 0 or form.columns == 0:
        return torch.zeros_like(form.x, dtype=torch.float32), torch.zeros_like(form.y, dtype=torch.float32)
    problem, softmaxes = _Problem.of(form, along_rows, along_columns), softmaxes.contiguous()
    inner, (x_factor, y_factor) = problem.form, problem.factors
    unit = _unit_of_moves(problem)
    directions = [problem.across, problem.down] if problem.separate else [problem.across]
    width = form.x.shape[1]
    x_sides = [side[:, :width] for side in (inner.x, *(d.x for d in directions))]
    y_sides = [side[:, :width] for side in (inner.y, *(d.y for d in directions))]
    # One accumulator a matrix: their units differ, and only the device knows them.
    for_x = [torch.zeros(form.x.shape, dtype=torch.float32, device=form.x.device) for _ in x_sides]
    for_y = [torch.zeros(form.y.shape, dtype=torch.float32, device=form.x.device) for _ in y_sides]
    config = inner.tile_for("curvature")
    with on_device_of(form.x):
        cut = waves(inner, block_rows=config.block_m, workspace_bytes=workspace_bytes, matrices=len(x_sides))
        for rows, weights in cut:
            _write_weights(problem, softmaxes, rows, unit, weights, config)
            for matrix, x_side, y_side, x_sum, y_sum in zip(weights, x_sides, y_sides, for_x, for_y, strict=True):
                add_product(x_sum[rows], matrix, y_side)
                add_product(y_sum, matrix.T, x_side[rows])
    steps = [1.0 / unit, *(direction.step for direction in directions)]
    return _total(for_x, y_factor, steps), _total(for_y, x_factor, steps)


def _write_weights(
    problem: _Problem,
    softmaxes: Softmaxes,
    rows: slice,
    unit: torch.Tensor,
    weights: list[torch.Tensor],
    config: TileConfig,
) -> None:
    """Fill a wave: M in `unit`, then P - I and Q - I, or their sum where one direction serves both."""
    band = problem.band(rows.start, rows.stop)
    tile_curvature_weights[band.form.tile_grid(config)](
        *band.arguments(),
        softmaxes.row_lse[rows],
        softmaxes.column_lse,
        softmaxes.row_mean[rows],
        softmaxes.column_mean,
        softmaxes.row_miss[rows],
        softmaxes.column_miss[rows],
        softmaxes.positive_weight[rows],
        softmaxes.diagonal + rows.start,
        unit,
        weights[0],
        weights[1],
        weights[-1],
        weights[0].stride(0),
        **band.form.constants(config),
        GROUP=config.group,
        EVEN=band.form.fills(config),
        UNIT=weight_unit(band.form.x.dtype),
        SEPARATE=problem.separate,
    )


def _scaled(features: torch.Tensor) -> _Scaled:
    if features.dtype == torch.float32:
        return _Scaled(features, features.new_ones(1))
    wide = features.float()
    factor = _power_of_two(wide.abs().amax())
    return _Scaled(_in_whole_blocks((wide / factor).half()), factor)


def _along(direction: Direction, x: _Scaled, y: _Scaled, inner: Form) -> _Along:
    along_x, along_y = direction.x.float() / x.factor, direction.y.float() / y.factor
    if inner.x.dtype == torch.float32:
        return _Along(along_x.contiguous(), along_y.contiguous(), inner.scale, torch.ones_like(x.factor))
    step = _power_of_two(torch.maximum(along_x.abs().amax(), along_y.abs().amax()))
    moved_x, moved_y = (_in_whole_blocks((along / step).half()) for along in (along_x, along_y))
    return _Along(moved_x, moved_y, inner.scale * step, step)


def _in_whole_blocks(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(features, (0, -features.shape[1] % _WIDEST_BLOCK))


def _unit_of_moves(problem: _Problem) -> torch.Tensor:
    """A power of two that keeps unit * M within 2, as the other weights are: |M| is at most 4 |R|, and R is bounded by
    the longest rows.
    """
    longest_x, longest_y = _longest(problem.form.x), _longest(problem.form.y)
    bounds = [
        along.scale.abs() * (longest_x * _longest(along.y) + _longest(along.x) * longest_y)
        for along in (problem.across, problem.down)
    ]
    return 1.0 / _power_of_two(4.0 * torch.maximum(*bounds))


def _longest(features: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(features, dim=1, dtype=torch.float32).amax()


def _power_of_two(size: torch.Tensor) -> torch.Tensor:
    """The largest power of two not above `size`, [1] fp32; of zero something tiny, so that 0 / 0 never is."""
    return torch.exp2(size.clamp_min(1e-30).log2().floor()).reshape(1)


def _total(sums: list[torch.Tensor], factor: torch.Tensor, steps: list[torch.Tensor]) -> torch.Tensor:
    """factor * Σ steps_k sums_k, in the memory of the first sum."""
    total = sums[0].mul_(steps[0])
    for part, step in zip(sums[1:], steps[1:], strict=True):
        total.addcmul_(part, step)
    return total.mul_(factor)
