# SPDX-License-Identifier: Apache-2.0
"""Muon for the hidden matrices, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from clipkit.errors import value_error
from clipkit.optim.base import Optimizer

# p(s) = a s + b s^3 + c s^5 sends singular values in (0, 1] to about 1 (within 0.3) in five rounds: Jordan et al.
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Momentum whose direction is orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

    Groups with "muon": True hold matrices (or convolution kernels, read as [out, in * height * width]) and are updated
    by W <- (1 - lr * weight_decay) W - lr * max(1, rows / columns)^0.5 * orthogonal(Nesterov momentum); their rate is
    a spectral one, typically ten times AdamW's. The other groups are updated by AdamW with `betas` and `eps`.

    The orthogonal factor comes from `iterations` rounds of a quintic Newton-Schulz iteration in float32; matrices of
    one shape are iterated as one batch. Every rank computes the same update from the same gradients, so it goes with
    DDP, and with ZeRO-1, where each rank has whole matrices of its own; a sharded matrix (DTensor) is refused, since a
    shard has no orthogonal factor of its own.

    torch.optim.Muon follows the same rule (convolution kernels apart) but iterates in bfloat16, matrix by matrix. It
    does not serve the demo, which has to end in minutes on any two cores: with it a step takes 0.99 times as long on
    a processor with bfloat16 products, but 1.26 times as long without them, and 3.35 times as long without AVX-512
    either, as on many laptops (medians over 12 steps, the older processors played by a limit on oneDNN's instructions:
    `python -m bench.muon --steps 15`, bench/results/cpu-2core/muon-2026-11-22.json).

    Raises:
        ValueError: a vector or a sharded tensor in a "muon" group, or no iteration.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        iterations: int = 5,
    ) -> None:
        if iterations < 1:
            raise value_error("iterations", got=iterations, want="at least 1", fix="5 is the usual number")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "iterations": iterations,
            "muon": False,
        }
        super().__init__(groups, defaults)
        for group in self.param_groups:
            if group["muon"]:
                _check_matrices(group["params"])

    def _update(self) -> None:
        for group in self.param_groups:
            (self._muon if group["muon"] else self._adamw)(group)

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[torch.device, int, int], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                rows = parameter.shape[0]
                by_shape.setdefault((parameter.device, rows, parameter.numel() // rows), []).append(parameter)
        for (_, rows, columns), parameters in by_shape.items():
            directions = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
            updates = orthogonalise(directions.view(-1, rows, columns), group["iterations"])
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update.view_as(parameter), alpha=rate)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov's direction as a flat float32 copy; the running mean is updated."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
        gradient = parameter.grad.float()
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum).reshape(-1)

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Nearly U V^T of each matrix U S V^T of [k, rows, columns]: its singular values, whatever their size, become
    about 1 (0.7 to 1.2 after five rounds, unless they are below a thousandth of the largest). A zero matrix stays."""
    a, b, c = _QUINTIC
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.transpose(1, 2)
    # Frobenius norm 1 bounds the singular values by 1, where the iteration converges
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.transpose(1, 2)


def _check_matrices(parameters: Iterable[Tensor]) -> None:
    from torch.distributed.tensor import DTensor

    for parameter in parameters:
        if parameter.ndim < 2:
            raise value_error(
                "groups",
                got=f"a tensor of shape {tuple(parameter.shape)} with muon=True",
                want="matrices",
                fix="leave vectors and scalars to a group without it",
            )
        if isinstance(parameter, DTensor):
            raise value_error(
                "groups",
                got="a sharded matrix with muon=True",
                want="whole matrices: orthogonalising needs every row",
                fix="use train.parallel=ddp or zero1, or optim.name=adamw",
            )
