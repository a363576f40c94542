# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.norms` in plain torch: the formulas, and a batch in pieces around them.

The formulas alone are what torch.compile is shown (see clipkit/encoders/fused): it fuses them by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.engine.norms import Normed
from clipkit.engine.precision import accumulation, widen
from clipkit.engine.torch_backend.pieces import in_pieces


def swiglu_norm(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """See `clipkit.engine.norms.swiglu_norm`."""
    out, mean, rstd = in_pieces(lambda g, v: swiglu_norm_formula(g, v, weight, bias, eps), gate, value)
    return out, mean, rstd


def swiglu_norm_formula(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """The same in one piece, [..., width]."""
    hidden = weight.shape[0]
    gated = F.silu(widen(gate[..., :hidden])) * widen(value[..., :hidden])
    normed, mean, rstd = normalised(gated, weight, bias, eps)
    return F.pad(normed, (0, gate.shape[-1] - hidden)).to(gate.dtype), mean, rstd


def swiglu_norm_gradients(
    grad: Tensor, gate: Tensor, value: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `clipkit.engine.norms.swiglu_norm_gradients`."""
    hidden = weight.shape[0]
    sums = _Sums(weight, gate)

    def piece(grad: Tensor, gate: Tensor, value: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        g, v = (widen(factor[:, :hidden]) for factor in (gate, value))
        active = F.silu(g)
        d_gated = sums.rows_gradient(grad[:, :hidden], active * v, mean, rstd)
        d_gate, d_value = torch.ops.aten.silu_backward(d_gated * v, g), d_gated * active
        beyond = (0, gate.shape[1] - hidden)
        return F.pad(d_gate, beyond).to(gate.dtype), F.pad(d_value, beyond).to(gate.dtype)

    d_gate, d_value = in_pieces(piece, grad, gate, value, mean, rstd)
    return d_gate, d_value, sums.weight, sums.bias


def add_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `clipkit.engine.norms.add_norm`."""
    total, normed, mean, rstd = in_pieces(lambda a, b: add_norm_formula(a, b, weight, bias, eps), x, branch)
    return total, normed, mean, rstd


def add_norm_formula(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same in one piece, [..., width]. What is normalised is the sum as it was rounded."""
    total = x + branch
    normed, mean, rstd = normalised(widen(total), weight, bias, eps)
    return total, normed.to(branch.dtype), mean, rstd


def add_post_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """See `clipkit.engine.norms.add_post_norm`."""
    out, mean, rstd = in_pieces(lambda a, b: add_post_norm_formula(a, b, weight, bias, eps), x, branch)
    return out, mean, rstd


def add_post_norm_formula(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """The same in one piece, [..., width]."""
    normed, mean, rstd = normalised(widen(branch), weight, bias, eps)
    return (widen(x) + normed).to(x.dtype), mean, rstd


def norm_gradients(
    grad: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `clipkit.engine.norms.norm_gradients`."""
    sums = _Sums(weight, x)

    def piece(grad: Tensor, residual: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor]:
        own = sums.rows_gradient(grad, widen(x), mean, rstd)
        return ((own if residual is None else own + residual).to(x.dtype),)

    (d_x,) = in_pieces(piece, grad, residual, x, mean, rstd)
    return d_x, sums.weight, sums.bias


def normalised(rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """LayerNorm of rows of the accumulation type, and their statistics [...]."""
    normed, mean, rstd = torch.native_layer_norm(rows, [rows.shape[-1]], weight.to(rows), bias.to(rows), eps)
    return normed, mean.squeeze(-1), rstd.squeeze(-1)


class _Sums:
    """The gradients of weight and bias, added up piece by piece."""

    def __init__(self, weight: Tensor, like: Tensor) -> None:
        self._affine = weight.to(accumulation(like))
        self.weight, self.bias = torch.zeros_like(self._affine), torch.zeros_like(self._affine)

    def rows_gradient(self, grad: Tensor, rows: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """The gradient of rows of the accumulation type, for that of their LayerNorm."""
        statistics = (mean.unsqueeze(-1), rstd.unsqueeze(-1))
        d_rows, for_weight, for_bias = torch.ops.aten.native_layer_norm_backward(
            widen(grad), rows, [rows.shape[-1]], *statistics, self._affine, self._affine, [True, True, True]
        )
        self.weight += for_weight
        self.bias += for_bias
        return d_rows
