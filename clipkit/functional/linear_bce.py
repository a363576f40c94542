# SPDX-License-Identifier: Apache-2.0
"""Multi-label binary cross-entropy of a linear classifier (CatLIP, arXiv 2404.15653, section 3), logits never stored.

With z = input · weightᵀ + bias over V labels and y the positives: Σ_bv softplus(z) - y z, summed over labels, averaged
over the batch. The positives come as CSR lists, because a caption names a handful of the vocabulary's thousands.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.errors import value_error
from clipkit.functional._checks import (
    as_integers,
    check_choice,
    check_features,
    check_nonempty,
    check_same,
    check_vector,
    common_type,
    readable,
)
from clipkit.functional._ops import loss_op, nothing, register_unit_gradients, wants_gradient
from clipkit.parallel import Layout, group_name, sum_over_ranks

_REDUCTIONS = ("batch_mean", "sum", "mean")


def linear_bce_with_logits(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_offsets: Tensor,
    target_indices: Tensor,
    *,
    reduction: Literal["batch_mean", "sum", "mean"] = "batch_mean",
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Binary cross-entropy with logits of `input @ weight.T + bias` against sparse positives.

    Args:
        input: this rank's rows [n, d].
        weight: the classifier [V, d], the same on every rank.
        bias: [V], or None.
        target_offsets: integers [n + 1]; the positives of row i are target_indices[target_offsets[i] : target_offsets[i
            + 1]].
        target_indices: integers, labels in [0, V); a label listed twice in a row counts once.
        reduction: "batch_mean" sums over labels and averages over the global batch (CatLIP's), "mean" also divides by
            V, "sum" does neither.
        group: the process group that shares the batch; None for this process alone.
        backend: the engine's backend by name; None for the device's default.

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank. After the mean of DDP or FSDP over ranks the
        gradients of input, weight and bias are those of one process holding the whole batch.

    Raises:
        TypeError: an argument of a wrong kind or dtype.
        ValueError: shapes or devices that do not fit together, or targets that are no CSR lists of labels in [0, V)
            (values are checked on the CPU; on a device that would mean waiting for it).
    """
    check_features(input=input, weight=weight)
    check_same("columns", 1, input=input, weight=weight)
    check_choice("reduction", reduction, _REDUCTIONS)
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    check_vector("bias", bias, weight.shape[0], input, per="label of the vocabulary")
    target_offsets, target_indices = (
        as_integers(name, values)
        for name, values in (("target_offsets", target_offsets), ("target_indices", target_indices))
    )
    _check_targets(target_offsets, target_indices, input, weight.shape[0])
    features, classes, offset = common_type(input, weight, bias)
    want = wants_gradient(features, classes, offset)
    name = group_name(group)
    outputs = _linear_bce(
        features, classes, offset, target_offsets, target_indices, reduction, want, name, backend or ""
    )
    return outputs[0]


@loss_op("linear_bce")
def _linear_bce(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    target_offsets: Tensor,
    target_indices: Tensor,
    reduction: str,
    want_gradients: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, unit gradients of input, weight and bias in the accumulation type; empty where not wanted)."""
    layout = Layout.of(input, group)
    check_nonempty(layout.total)
    loss, input_grad, weight_grad, bias_grad = sweeps.labelled_sigmoid_sweep(
        input, weight, bias, target_offsets, target_indices, want_gradients=want_gradients, backend=backend
    )
    count = {"batch_mean": layout.total, "mean": layout.total * weight.shape[0], "sum": 1}[reduction]
    loss = sum_over_ranks(loss, layout) / count
    if input_grad is None or weight_grad is None or bias_grad is None:
        return loss, nothing(loss), nothing(loss), nothing(loss)
    # No feature crosses ranks here: each rank's part of every gradient, scaled so that the mean over ranks is their
    # sum.
    unit = layout.world_size / count
    return loss, input_grad * unit, weight_grad * unit, bias_grad * unit


@_linear_bce.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    target_offsets: Tensor,
    target_indices: Tensor,
    reduction: str,
    want_gradients: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation(input)
    loss = input.new_empty((), dtype=dtype)
    if not want_gradients:
        return loss, nothing(loss), nothing(loss), nothing(loss)
    input_grad, weight_grad, bias_grad = (torch.empty_like(value, dtype=dtype) for value in (input, weight, bias))
    return loss, input_grad, weight_grad, bias_grad


register_unit_gradients(_linear_bce)


def _check_targets(offsets: Tensor, indices: Tensor, input: Tensor, labels: int) -> None:
    rows = input.shape[0]
    for name, values in (("target_offsets", offsets), ("target_indices", indices)):
        if values.device != input.device:
            raise value_error(
                name,
                got=f"a tensor on {values.device}",
                want=f"input's device, {input.device}",
                fix=f"move it with .to({str(input.device)!r})",
            )
    if offsets.numel() != rows + 1:
        raise value_error(
            "target_offsets", got=f"{offsets.numel()} entries", want=f"n + 1 = {rows + 1}", fix="pass CSR row offsets"
        )
    if not readable(offsets):
        return
    if int(offsets[0]) != 0 or int(offsets[-1]) != indices.numel() or bool((offsets.diff() < 0).any()):
        raise value_error(
            "target_offsets",
            got=f"offsets from {int(offsets[0])} to {int(offsets[-1])} for {indices.numel()} indices",
            want="offsets that rise from 0 to the number of target_indices",
            fix="pass CSR row offsets",
        )
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < labels):
        raise value_error(
            "target_indices",
            got=f"values from {int(indices.min())} to {int(indices.max())}",
            want=f"labels in [0, {labels})",
            fix="use the vocabulary that the classifier was made for",
        )
