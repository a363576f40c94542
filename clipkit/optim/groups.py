# SPDX-License-Identifier: Apache-2.0
"""Parameter groups: who is decayed, who has a learning rate of its own, and who is orthogonalised."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from clipkit.errors import value_error
from clipkit.optim.layers import layer_scales, tower_of

SCALE_NAMES = ("logit_scale", "logit_bias")
_KINDS = ("decay", "no_decay", "scale", "hidden")


@dataclass(frozen=True)
class TowerOptions:
    """What one tower has of its own. `lr` and `weight_decay`: None is the model's.

    `layer_decay` multiplies the rate once for each layer between a parameter and the tower's output; see
    `clipkit.optim.layers.layer_scales`.
    """

    lr: float | None = None
    weight_decay: float | None = None
    layer_decay: float = 1.0


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    lr_scale: float | None = None,
    hidden: Iterable[nn.Parameter] = (),
    lr_hidden: float | None = None,
    towers: Mapping[str, TowerOptions] | None = None,
    no_decay: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Split trainable parameters into decayed matrices, undecayed vectors (biases, norms, ...), and logit scale/bias.

    `hidden` (see `hidden_matrices`) become a group of their own, marked "muon", with the rate `lr_hidden`. Scale and
    bias are a group of their own even at the same rate: under FSDP2 they are plain tensors among sharded ones,
    and one fused optimizer call cannot mix the two. Parameters of one kind with equal options share a group, so without
    `towers` there are these four at most, and empty ones are left out.

    Each group keeps its parameters' names in "names", its peak rate before layer decay in "peak_lr" and that decay's
    factor in "layer_scale"; a schedule writes "lr".

    Args:
        named_parameters: all of the model's, the frozen ones too.
        lr: the peak rate.
        weight_decay: of matrices and embeddings; vectors, scale and bias have none.
        lr_scale: the peak rate of scale and bias; None: `lr`.
        hidden: what is orthogonalised.
        lr_hidden: its peak rate, in a tower with a rate of its own times that over `lr`; None: `lr`.
        towers: options of "image" (`visual.*`) and "text".
        no_decay: parts of names, between dots, of further parameters without weight decay. EVA-CLIP's are cls_token,
            pos_embed and positional_embedding; the token embedding is decayed.

    Raises:
        ValueError: a name in `no_decay` that no parameter has; layer decay in a tower without blocks; a tower's own
            rate for hidden matrices where `lr` is 0.
    """
    named = list(named_parameters)
    towers = towers or {}
    _check_names(no_decay, [name for name, _ in named])
    scales = layer_scales([name for name, _ in named], {tower: each.layer_decay for tower, each in towers.items()})
    orthogonalised = {id(parameter) for parameter in hidden}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        kind = "hidden" if id(parameter) in orthogonalised else _kind(name, parameter, no_decay)
        own = towers.get(tower_of(name) or "", TowerOptions())
        peak = lr if own.lr is None else own.lr
        if kind == "hidden":
            peak = _hidden_rate(lr if lr_hidden is None else lr_hidden, own, lr)
        elif kind == "scale" and lr_scale is not None:
            peak = lr_scale
        decay = weight_decay if own.weight_decay is None else own.weight_decay
        options = {
            "group": kind,
            "peak_lr": peak,
            "layer_scale": scales[name],
            "weight_decay": decay if kind in ("decay", "hidden") else 0.0,
        }
        group = groups.setdefault(tuple(options.values()), {**options, "params": [], "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    for group in groups.values():
        group["lr"] = group["layer_scale"] * group["peak_lr"]
        if group["group"] == "hidden":
            group["muon"] = True
    return sorted(groups.values(), key=lambda group: _KINDS.index(group["group"]))


def hidden_matrices(blocks: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The weight matrices inside a model's blocks. Kernels with one input channel (depthwise) are one small vector for
    each channel, not a matrix, and are left out; so are embeddings, tables of rows that are looked up or added."""
    return [
        parameter
        for block in blocks
        for name, parameter in block.named_parameters()
        if parameter.ndim >= 2 and parameter.shape[1] > 1 and not name.endswith("embedding")
    ]


def _kind(name: str, parameter: nn.Parameter, no_decay: Collection[str]) -> str:
    if name.rpartition(".")[2] in SCALE_NAMES:
        return "scale"
    return "decay" if parameter.ndim >= 2 and not set(no_decay).intersection(name.split(".")) else "no_decay"


def _hidden_rate(lr_hidden: float, own: TowerOptions, lr: float) -> float:
    if own.lr is None:
        return lr_hidden
    if lr == 0:
        raise value_error(
            "lr",
            got=f"0, and {own.lr} for a tower whose hidden matrices learn at lr_hidden times the ratio of the two",
            want="more than 0",
            fix="give the tower's own rate as lr",
        )
    return lr_hidden * (own.lr / lr)


def _check_names(no_decay: Collection[str], names: list[str]) -> None:
    known = {part for name in names for part in name.split(".")}
    unknown = sorted(set(no_decay) - known)
    if unknown:
        raise value_error(
            "no_decay",
            got=", ".join(unknown),
            want="parts of the names of parameters, such as positional_embedding",
            fix="leave out what this model does not have",
        )
