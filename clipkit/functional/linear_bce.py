# SPDX-License-Identifier: Apache-2.0
"""Multi-label binary cross-entropy of a linear classifier (CatLIP, arXiv 2404.15653, section 3), logits never stored.

With z = input · weightᵀ + bias over V labels and y the positives: Σ_bv softplus(z) - y z, summed over labels, averaged
over the batch. The positives come as CSR lists, because a caption names a handful of the vocabulary's thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.errors import value_error
from clipkit.functional._checks import (
    agree,
    as_integers,
    check_choice,
    check_features,
    check_same,
    check_vector,
    common_type,
    readable,
)
from clipkit.functional._ops import fake_gradients, loss_op, only_wanted, register_gradients, shared, wanted
from clipkit.parallel import announced, group_name, sum_over_ranks

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
    name = group_name(group)
    with announced(name):
        check_features(input=input, weight=weight)
        check_same("columns", 1, input=input, weight=weight)
        check_choice("reduction", reduction, _REDUCTIONS)
        if bias is None:
            bias = weight.new_zeros(weight.shape[0])
        check_vector("bias", bias, weight.shape[0], input, per="label of the vocabulary")
        offsets = as_integers("target_offsets", target_offsets)
        indices = as_integers("target_indices", target_indices)
        _check_targets(offsets, indices, input, weight.shape[0])
        features, classes, shift = common_type(input, weight, bias)
    wants = wanted(features, classes, shift)
    loss, *_ = _linear_bce(features, classes, shift, offsets, indices, reduction, wants, name, backend or "")
    return shared(loss, name)


@loss_op("linear_bce")
def _linear_bce(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    target_offsets: Tensor,
    target_indices: Tensor,
    reduction: str,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, unit gradients of input, weight and bias)."""
    labels = weight.shape[0]
    settings = ("linear_bce_with_logits", labels, reduction)
    layout = agree(input, group, *settings, backend=backend)
    loss, *gradients = sweeps.labelled_sigmoid_sweep(
        input, weight, bias, target_offsets, target_indices, want_gradients=any(wants), backend=backend
    )
    count = {"batch_mean": layout.total, "mean": layout.total * labels, "sum": 1}[reduction]
    # No feature crosses ranks here: each rank's part of every gradient, scaled so that the mean over ranks is their
    # sum.
    unit = layout.world_size / count
    scaled = [gradient if gradient is None else gradient * unit for gradient in gradients]
    return sum_over_ranks(loss, layout) / count, *only_wanted(wants, scaled, like=loss)


@_linear_bce.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    target_offsets: Tensor,
    target_indices: Tensor,
    reduction: str,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = input.new_empty((), dtype=accumulation(input))
    return loss, *fake_gradients(wants, loss, input, weight, bias)


register_gradients(_linear_bce, count=3)


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
