# SPDX-License-Identifier: Apache-2.0
"""Parameter groups: who is decayed, who has a learning rate of its own, and who is orthogonalised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

SCALE_NAMES = ("logit_scale", "logit_bias")


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    lr_scale: float | None = None,
    hidden: Iterable[nn.Parameter] = (),
    lr_hidden: float | None = None,
) -> list[dict[str, Any]]:
    """Split trainable parameters into decayed matrices, undecayed vectors (biases, norms, ...), and logit scale/bias.

    `hidden` (see `hidden_matrices`) become a group of their own, marked "muon", with the rate `lr_hidden`. Scale and
    bias are a group of their own even at the same rate: under FSDP2 they are plain tensors among sharded ones,
    and one fused optimizer call cannot mix the two. Each group keeps its peak rate in "peak_lr" (a schedule writes
    "lr") and its parameters' names in "names". Empty groups are left out. Matrices come before vectors and scalars:
    where all are laid out in one buffer (clipkit.train.zero), every matrix then starts aligned.
    """
    groups: dict[str, dict[str, Any]] = {
        "decay": {"weight_decay": weight_decay, "peak_lr": lr},
        "hidden": {"weight_decay": weight_decay, "peak_lr": lr if lr_hidden is None else lr_hidden, "muon": True},
        "no_decay": {"weight_decay": 0.0, "peak_lr": lr},
        "scale": {"weight_decay": 0.0, "peak_lr": lr if lr_scale is None else lr_scale},
    }
    orthogonalised = {id(parameter) for parameter in hidden}
    for group in groups.values():
        group.update(params=[], names=[], lr=group["peak_lr"])
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        kind = "hidden" if id(parameter) in orthogonalised else _kind(name, parameter)
        groups[kind]["params"].append(parameter)
        groups[kind]["names"].append(name)
    return [{**group, "group": kind} for kind, group in groups.items() if group["params"]]


def hidden_matrices(blocks: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The weight matrices inside a model's blocks. Kernels with one input channel (depthwise) are one small vector for
    each channel, not a matrix, and are left out; so are embeddings, tables of rows that are looked up or added."""
    return [
        parameter
        for block in blocks
        for name, parameter in block.named_parameters()
        if parameter.ndim >= 2 and parameter.shape[1] > 1 and not name.endswith("embedding")
    ]


def _kind(name: str, parameter: nn.Parameter) -> str:
    if name.rpartition(".")[2] in SCALE_NAMES:
        return "scale"
    return "decay" if parameter.ndim >= 2 else "no_decay"
