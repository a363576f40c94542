# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.norms` in plain torch: the formulas, and loops over pieces of a batch around them.

The formulas alone are what torch.compile is shown (see clipkit/encoders/fused): it fuses them by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.engine.norms import Normed
from clipkit.engine.precision import accumulation, widen
from clipkit.engine.torch_backend.pieces import pieces


def swiglu_norm(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """See `clipkit.engine.norms.swiglu_norm`."""
    out, mean, rstd = gate.new_empty(gate.shape), *_statistics(gate)
    for rows in pieces(gate):
        out[rows], mean[rows], rstd[rows] = swiglu_norm_formula(gate[rows], value[rows], weight, bias, eps)
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
    d_gate, d_value = gate.new_zeros(gate.shape), value.new_zeros(value.shape)
    d_weight, d_bias = _sums(weight, gate)
    for rows in pieces(gate):
        g, v = (widen(factor[rows, :hidden]) for factor in (gate, value))
        active = F.silu(g)
        d_gated = _into(d_weight, d_bias, grad[rows, :hidden], active * v, weight, mean[rows], rstd[rows])
        d_value[rows, :hidden] = d_gated * active
        d_gate[rows, :hidden] = torch.ops.aten.silu_backward(d_gated * v, g)
    return d_gate, d_value, d_weight, d_bias


def add_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `clipkit.engine.norms.add_norm`."""
    total, normed = x.new_empty(x.shape), branch.new_empty(branch.shape)
    mean, rstd = _statistics(x)
    for rows in pieces(x):
        results = add_norm_formula(x[rows], branch[rows], weight, bias, eps)
        total[rows], normed[rows], mean[rows], rstd[rows] = results
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
    out, mean, rstd = x.new_empty(x.shape), *_statistics(x)
    for rows in pieces(x):
        out[rows], mean[rows], rstd[rows] = add_post_norm_formula(x[rows], branch[rows], weight, bias, eps)
    return out, mean, rstd


def add_post_norm_formula(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """The same in one piece, [..., width]."""
    normed, mean, rstd = normalised(widen(branch), weight, bias, eps)
    return (widen(x) + normed).to(x.dtype), mean, rstd


def norm_gradients(
    grad: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `clipkit.engine.norms.norm_gradients`."""
    d_x = x.new_empty(x.shape)
    d_weight, d_bias = _sums(weight, x)
    for rows in pieces(x):
        own = _into(d_weight, d_bias, grad[rows], widen(x[rows]), weight, mean[rows], rstd[rows])
        d_x[rows] = own if residual is None else own + residual[rows]
    return d_x, d_weight, d_bias


def normalised(rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """LayerNorm of rows of the accumulation type, and their statistics [...]."""
    normed, mean, rstd = torch.native_layer_norm(rows, [rows.shape[-1]], weight.to(rows), bias.to(rows), eps)
    return normed, mean.squeeze(-1), rstd.squeeze(-1)


def _into(
    d_weight: Tensor, d_bias: Tensor, grad: Tensor, rows: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> Tensor:
    """The gradient of rows of the accumulation type; those of weight and bias are added up."""
    affine, statistics = weight.to(rows), (mean.unsqueeze(-1), rstd.unsqueeze(-1))
    d_rows, for_weight, for_bias = torch.ops.aten.native_layer_norm_backward(
        widen(grad), rows, [rows.shape[-1]], *statistics, affine, affine, [True, True, True]
    )
    d_weight += for_weight
    d_bias += for_bias
    return d_rows


def _statistics(like: Tensor) -> tuple[Tensor, Tensor]:
    mean = like.new_empty(len(like), dtype=accumulation(like))
    return mean, torch.empty_like(mean)


def _sums(weight: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    total = weight.new_zeros(weight.shape, dtype=accumulation(like))
    return total, total.clone()
