# SPDX-License-Identifier: Apache-2.0
"""Loss, G Y and Gᵀ X of the sigmoid family in one sweep: the launch code around kernels/tile_sigmoid_weights.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from .config import TileConfig
from .form import Form, Own, device_scalar, on_device_of
from .tile_sigmoid_weights import tile_sigmoid_weights
from .waves import DEFAULT_WORKSPACE_BYTES, wave_products, wave_rows, weight_unit


class SigmoidSweep(NamedTuple):
    """Σ softplus(-z X); G Y [n, d], Gᵀ X [m, d] and the sum of G, all pairs [] or per column [m], unless only the loss
    was wanted. All fp32.
    """

    loss: torch.Tensor
    g_y: torch.Tensor | None
    gt_x: torch.Tensor | None
    g_sum: torch.Tensor | None


def sigmoid_sweep(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: float | torch.Tensor,
    bias: float | torch.Tensor,
    *,
    diagonal: int,
    want_gradients: bool,
    precision: str = "ieee",
    config: TileConfig | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> SigmoidSweep:
    """For X = scale * x @ y.T + bias, x [n, d], y [m, d] in fp32, fp16 or bf16; z = +1 on the pairs (i, i + diagonal),
    -1 elsewhere, and G = -z sigmoid(-z X). Scale and bias may be one-element tensors; nothing is read back to the host.
    """
    form = Form.of(x, y, scale, precision)
    run = _Run(form, device_scalar(bias, x.device), Own("diagonal", diagonal), None, config, want_gradients)
    return run.sweep(workspace_bytes)


def labelled_sigmoid_sweep(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    target_offsets: torch.Tensor,
    target_indices: torch.Tensor,
    *,
    want_gradients: bool,
    precision: str = "ieee",
    config: TileConfig | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> SigmoidSweep:
    """The same for X = x @ weight.T + bias [m], positives of row i being target_indices[target_offsets[i] :
    target_offsets[i + 1]] (int64, any order, a repeated one counts once); the sum of G is per column.
    """
    form = Form.of(x, weight, 1.0, precision)
    targets = _Targets.of(target_offsets, target_indices, form.columns)
    run = _Run(form, bias.float().contiguous(), Own("lists", labels=targets.labels), targets, config, want_gradients)
    swept = run.sweep(workspace_bytes)
    # Nobody has looked at labels that are on a device: one that does not exist shows in the loss.
    return swept._replace(loss=torch.where(targets.known, swept.loss, torch.nan))


class _Targets(NamedTuple):
    """All positives in the order of rows and, within a row, labels. `keys` is row * columns + label, past the last row
    for labels outside [0, columns); `known` says that there are none of those.
    """

    keys: torch.Tensor
    labels: torch.Tensor
    columns: int
    known: torch.Tensor

    @classmethod
    def of(cls, offsets: torch.Tensor, indices: torch.Tensor, columns: int) -> _Targets:
        entries = torch.arange(indices.numel(), device=indices.device)
        rows = torch.searchsorted(offsets[1:].contiguous(), entries, right=True)
        known = (indices >= 0) & (indices < columns)
        keys = torch.where(known, rows * columns + indices, (offsets.numel() - 1) * columns).sort().values
        return cls(keys, keys % max(1, columns), columns, known.all())

    def starts(self, rows: slice, block: int) -> torch.Tensor:
        """[rows, column tiles + 1]: which of the labels are the first in each tile of `block` columns, and the end."""
        device = self.keys.device
        edges = torch.arange(triton.cdiv(self.columns, block) + 1, device=device).mul_(block).clamp_(max=self.columns)
        row_keys = torch.arange(rows.start, rows.stop, device=device)[:, None] * self.columns
        return torch.searchsorted(self.keys, row_keys + edges)


class _Run:
    """One sweep: the operands, and what the waves add up. Sums over tiles are fp64: there are millions of them."""

    def __init__(
        self,
        form: Form,
        bias: torch.Tensor,
        own: Own,
        targets: _Targets | None,
        config: TileConfig | None,
        want_gradients: bool,
    ) -> None:
        self.form, self.bias, self.own, self.targets = form, bias, own, targets
        self.tile = config or form.tile_for("sigmoid")
        self.want_gradients = want_gradients
        shape = () if targets is None else (form.columns,)
        self.loss = torch.zeros((), dtype=torch.float64, device=form.x.device)
        self.g_sum = torch.zeros(shape, dtype=torch.float64, device=form.x.device)

    def sweep(self, workspace_bytes: int) -> SigmoidSweep:
        heights = {"block_rows": self.tile.block_m, "workspace_bytes": workspace_bytes}
        with on_device_of(self.form.x):
            if self.want_gradients:
                g_y, gt_x = wave_products(self.form, self.write_weights, want_x=True, want_y=True, **heights)
                return SigmoidSweep(self.loss.float(), g_y, gt_x, self.g_sum.float())
            for rows in wave_rows(self.form, **heights):
                self.write_weights(rows, self.form.x)
        return SigmoidSweep(self.loss.float(), None, None, None)

    def write_weights(self, rows: slice, weights: torch.Tensor) -> None:
        """Launch one wave and add its partial sums; `weights` is not touched unless gradients are wanted."""
        tile, band = self.tile, self.form.band(rows.start, rows.stop)
        (tiles,) = band.tile_grid(tile)
        losses = torch.empty(tiles, dtype=torch.float32, device=band.x.device)
        row_tiles = triton.cdiv(band.rows, tile.block_m)
        sums = torch.empty_like(losses) if self.targets is None else losses.new_empty(row_tiles, band.columns)
        tile_sigmoid_weights[(tiles,)](
            *band.arguments(),
            self.own.diagonal + rows.start,
            band.scale if self.targets is None else self.targets.labels,
            band.scale if self.targets is None else self.targets.starts(rows, tile.block_n),
            self.bias,
            losses,
            sums,
            weights,
            weights.stride(0),
            **band.constants(tile),
            GROUP=tile.group,
            EVEN=band.fills(tile),
            UNIT=weight_unit(band.x.dtype),
            OWN=self.own.kind,
            WANT_WEIGHTS=self.want_gradients,
        )
        self.loss += losses.sum(dtype=torch.float64)
        if self.want_gradients:
            self.g_sum += sums.sum(dtype=torch.float64) if self.targets is None else sums.sum(0, dtype=torch.float64)
