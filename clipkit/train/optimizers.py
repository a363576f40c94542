# SPDX-License-Identifier: Apache-2.0
"""The optimizer that a configuration names: one function for each."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from clipkit.errors import value_error
from clipkit.optim import Lamb, Muon, hidden_matrices, parameter_groups
from clipkit.train.config import OptimConfig
from clipkit.train.rates import logit_scale_of

Groups = list[dict[str, Any]]


def build_optimizer(settings: OptimConfig, module: nn.Module, blocks: Sequence[nn.Module]) -> torch.optim.Optimizer:
    """The optimizer of `module`'s trainable parameters, in the groups of clipkit.optim.parameter_groups.

    Args:
        settings: `settings.name` decides.
        module: wrapped already where it is going to be, so that its parameters are the ones to be trained.
        blocks: the parts of it whose matrices Muon takes.

    Raises:
        ValueError: a library that is not installed; sharded matrices under Muon; no logit_scale for step_thresh; layer
            decay or `no_decay` for parts that the model does not have.
    """
    groups = parameter_groups(
        module.named_parameters(),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        lr_scale=settings.lr_scale,
        hidden=hidden_matrices(blocks) if settings.name == "muon" else (),
        lr_hidden=settings.muon.lr,
        towers={"image": settings.image, "text": settings.text},
        no_decay=settings.no_decay,
    )
    if settings.scale_schedule.name == "step_thresh":
        for group in groups:
            if group["group"] == "scale":
                logit_scale_of(group)
    return _BUILDERS[settings.name](groups, settings)


def _adamw(groups: Groups, settings: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def _lamb(groups: Groups, settings: OptimConfig) -> torch.optim.Optimizer:
    return Lamb(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, trust=settings.lamb.trust)


def _muon(groups: Groups, settings: OptimConfig) -> torch.optim.Optimizer:
    muon = settings.muon
    common: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    return Muon(groups, **common, momentum=muon.momentum, iterations=muon.iterations)


def _sgd(groups: Groups, settings: OptimConfig) -> torch.optim.Optimizer:
    """Not torch's fused form for the weights: it has none for shards, and a first step that a GradScaler leaves out
    has it read momentum from memory that nothing was written to. The scale has no momentum and is no shard; there it
    is fused, since the form by lists of tensors would have the host read a rate that is a tensor.
    """
    for group in groups:
        if group["group"] == "scale":
            group.update(momentum=0.0, foreach=False, fused=True)
    sgd = settings.sgd
    return torch.optim.SGD(groups, lr=settings.lr, momentum=sgd.momentum, nesterov=sgd.nesterov, foreach=True)


def _lion(groups: Groups, settings: OptimConfig) -> torch.optim.Optimizer:
    try:
        library: Any = importlib.import_module("pytorch_optimizer")
    except ImportError:
        raise value_error(
            "optim.name",
            got="lion, and pytorch-optimizer is not installed",
            want="the library that has it",
            fix='pip install "clipkit-torch[lion]", or use another optimizer',
        ) from None
    lion: torch.optim.Optimizer = library.Lion(groups, lr=settings.lr, betas=settings.lion.betas, foreach=True)
    return lion


_BUILDERS = {"adamw": _adamw, "lamb": _lamb, "lion": _lion, "muon": _muon, "sgd": _sgd}
