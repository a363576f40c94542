# SPDX-License-Identifier: Apache-2.0
"""LAMB with the trust ratio of the paper, of NVIDIA's implementation or of DeepSpeed's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipkit.engine.lamb import TRUST_RULES, LambTensors, lamb
from clipkit.errors import type_error, value_error
from clipkit.optim.base import Optimizer


class Lamb(Optimizer):
    """Adam's direction, scaled for each tensor by |weights| / |update| (You et al. 2019, "Large batch optimization for
    deep learning: training BERT in 76 minutes").

    u = m̂ / (√v̂ + eps) + weight_decay w and w ← w - lr q u. The trust ratio q is |w| / |u|, 1 where either is 0, and

    * "nvlamb": 1 for tensors without weight decay (biases and norms, usually). NVLAMB's clipping of the global gradient
      norm to 1 is not part of this class: clip the gradients first. FastCLIP's LAMB is exactly this rule, unclipped.
    * "paper": for every tensor.
    * "deepspeed": for every tensor, clipped to [0.01, 10]; the direction is m / (√v + eps) and the bias correction
      √(1-β2^t) / (1-β1^t) multiplies the rate. Norms are each tensor's: under ZeRO DeepSpeed takes those of a rank's
      whole partition of a group, which change with the number of ranks, and these are not imitated.

    A 16-bit parameter keeps fp32 master weights in the state: bounds on it go through `clamp_`. Norms of a DTensor's
    shards are summed over the ranks that hold them, so the step does not depend on how a model is sharded. A
    GradScaler's scale and verdict are taken from device memory: the step is skipped, state and step count included,
    without the host waiting to know.

    Args:
        params: parameters or groups of them.
        lr: the rate; a 0-D tensor of the parameters' device is not read by the host.
        betas: of the moving averages of the gradient and of its square, in [0, 1).
        eps: added to √v̂.
        weight_decay: decoupled, inside the ratio.
        trust: the rule.
        backend: the engine's backend by name; "cpu" makes two passes over memory, "cuda" three launches for all
            tensors. None: the device's default.

    Raises:
        TypeError: a parameter that is not of a real floating-point type.
        ValueError: an option out of its range; a backend that cannot serve the parameters.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        trust: str = "nvlamb",
        *,
        backend: str | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "trust": trust}
        self.backend = backend
        super().__init__(params, defaults)
        for group in self.param_groups:
            _check_group(group)
            _check_types(group["params"])

    def _update(self) -> None:
        for entries in self._alike():
            self._step(entries)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but all state comes back on the parameter's device and as it was saved, where torch rounds the
        masters and moments of 16-bit parameters to 16 bit."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, saved in state_dict["state"].get(number, {}).items():
                self.state[parameter][name] = saved.detach().to(parameter.device, copy=True)

    def _alike(self) -> Iterable[list[_Entry]]:
        """Parameters that one call can update: of one device, type and set of options."""
        batches: dict[tuple[Any, ...], list[_Entry]] = {}
        for group in self.param_groups:
            options = (tuple(group["betas"]), group["eps"], group["trust"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    entry = _Entry(parameter, self._state_of(parameter), group)
                    batches.setdefault((parameter.device, parameter.dtype, *options), []).append(entry)
        return batches.values()

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            dtype = _arithmetic(parameter)
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype)
            if parameter.dtype != dtype:
                state["master"] = parameter.detach().to(dtype, copy=True)
        return state

    def _step(self, entries: list[_Entry]) -> None:
        device, group = entries[0].parameter.device, entries[0].group
        skip, multiply = self._scaler_verdict(device)
        steps = [entry.state["step"] for entry in entries]
        torch._foreach_add_(steps, 1.0 if skip is None else 1.0 - skip)
        masters = ["master" in entry.state for entry in entries]
        tensors = LambTensors(
            weights=[_local(entry.state.get("master", entry.parameter)) for entry in entries],
            gradients=[_local(entry.parameter.grad) for entry in entries],
            means=[_local(entry.state["exp_avg"]) for entry in entries],
            variances=[_local(entry.state["exp_avg_sq"]) for entry in entries],
            copies=[_local(entry.parameter) for entry in entries] if masters[0] else None,
            steps=steps,
            rates=[entry.group["lr"] for entry in entries],
            decays=[float(entry.group["weight_decay"]) for entry in entries],
            betas=group["betas"],
            eps=group["eps"],
            trust=group["trust"],
            skip=skip,
            multiply=multiply,
        )
        norms, apply = lamb(tensors, backend=self.backend or "")
        _sum_over_shards(norms, [entry.parameter for entry in entries])
        apply(norms)

    def _scaler_verdict(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """(1 where the step is to be skipped, the factor of the gradients), as a GradScaler hands them over."""
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        skip = None if found_inf is None else (found_inf != 0).to(device=device, dtype=torch.float32).reshape(())
        if grad_scale is None:
            return skip, None
        return skip, grad_scale.to(device=device, dtype=torch.float32).reciprocal().reshape(())


class _Entry(NamedTuple):
    parameter: nn.Parameter
    state: dict[str, Tensor]
    group: dict[str, Any]


def _arithmetic(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _local(tensor: Tensor | None) -> Tensor:
    from torch.distributed.tensor import DTensor

    assert tensor is not None, "parameters without gradient were left out"
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sum_over_shards(norms: Tensor, parameters: list[nn.Parameter]) -> None:
    """Sums of squares [tensors, 2] of shards become those of whole tensors, on all ranks alike."""
    from torch.distributed.tensor import DTensor

    rows_of: dict[Any, list[int]] = {}
    for row, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            sharded = (dim for dim, placement in enumerate(parameter.placements) if not placement.is_replicate())
            for dim in sharded:
                rows_of.setdefault((parameter.device_mesh, dim), []).append(row)
    for (mesh, dim), rows in rows_of.items():
        index = torch.tensor(rows).to(norms.device, non_blocking=True)
        part = norms[index]
        dist.all_reduce(part, group=mesh.get_group(dim))
        norms[index] = part


def _check_group(group: dict[str, Any]) -> None:
    if group["lr"] < 0:
        raise value_error("lr", got=group["lr"], want="at least 0", fix="1e-3 is usual for LAMB")
    if not all(0.0 <= beta < 1.0 for beta in group["betas"]):
        raise value_error("betas", got=group["betas"], want="two numbers in [0, 1)", fix="(0.9, 0.999) is usual")
    if group["eps"] < 0:
        raise value_error("eps", got=group["eps"], want="at least 0", fix="1e-6 is usual")
    if group["weight_decay"] < 0:
        raise value_error("weight_decay", got=group["weight_decay"], want="at least 0", fix="0 switches it off")
    if group["trust"] not in TRUST_RULES:
        raise value_error("trust", got=repr(group["trust"]), want=f"one of {TRUST_RULES}", fix="nvlamb is the default")


def _check_types(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        if not parameter.is_floating_point():
            raise type_error("params", got=parameter.dtype, want="real floating-point numbers", fix="leave it out")
