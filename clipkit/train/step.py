# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: losses, exact gradients (also over micro-batches), clipping, update."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clipkit.encoders.batch_norm import frozen_statistics, running_statistics
from clipkit.errors import value_error
from clipkit.recipes import BaseRecipe
from clipkit.train.config import Config
from clipkit.train.parallelize import average_statistics, clip_gradients, gradient_sync, unwrap
from clipkit.train.precision import Precision
from clipkit.train.rates import group_rate, main_rate
from clipkit.train.runtime import Runtime

if TYPE_CHECKING:
    from clipkit.data import Batch


@dataclass(frozen=True)
class StepResult:
    """What one step did. Tensors stay on the device: reading them is the caller's decision.

    Attributes:
        loss: the weighted total, global, 0-D.
        losses: the recipe's named losses before weighting, 0-D each.
        grad_norm: global gradient norm before clipping, 0-D.
        lr: the image tower's rate before layer decay.
        skipped: fp16 only, the gradients overflowed and no update was made.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    grad_norm: Tensor
    lr: float
    skipped: bool


class TrainStep:
    """Everything needed to turn a local batch into an update, the same on every rank."""

    def __init__(
        self,
        recipe: BaseRecipe,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Config,
        runtime: Runtime,
        *,
        precision: Precision,
        total_steps: int,
    ) -> None:
        self.recipe, self.module, self.optimizer = recipe, module, optimizer
        self.config, self.runtime, self.precision, self.total_steps = config, runtime, precision, total_steps
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._statistics = running_statistics(module)

    def __call__(self, batch: Batch, step: int) -> StepResult:
        """Train on this rank's rows of global batch number `step` (counted from 0)."""
        # The random numbers of a step are a function of (seed, step, rank): a resumed run needs no generator state.
        torch.manual_seed(step_seed(self.config.train.seed, step, self.runtime.rank))
        lr = self._set_learning_rate(step)
        self.recipe.before_step(step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._whole(batch) if self.config.train.accumulation == 1 else self._accumulated(batch)
        scaler, scale_before = self.precision.scaler, self.precision.scaler.get_scale()
        scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self._parameters, self.config.optim.grad_clip, self.runtime.group)
        scaler.step(self.optimizer)
        scaler.update()
        average_statistics(self._statistics, self.runtime.group)
        self.recipe.after_step(unwrap(self.module))
        self.recipe.commit((~grad_norm.isfinite()).float())
        detached = {name: loss.detach() for name, loss in losses.items()}
        skipped = scaler.is_enabled() and scaler.get_scale() < scale_before
        return StepResult(total_loss(detached, self.recipe.weights), detached, grad_norm, lr, skipped)

    def _whole(self, batch: Batch) -> dict[str, Tensor]:
        with self.precision.encoding():
            features = self.recipe.encode_whole(batch)
        losses = self.recipe.losses(features, batch)
        self.precision.scaler.scale(total_loss(losses, self.recipe.weights)).backward()
        return losses

    def _accumulated(self, batch: Batch) -> dict[str, Tensor]:
        """Gao et al. 2021 (GradCache): the gradients of the whole batch, with one micro-batch's activations alive.

        Encode without a graph, take one loss over all rows, then encode again with the same random numbers and send
        the cached feature gradients back. 0-D outputs (the scale) get their gradient once, with the last micro-batch.
        BatchNorm normalises by the micro-batch, in both passes alike; the first enters its running statistics.
        """
        parts = split(batch, self.config.train.accumulation)
        states, cached = [], []
        for part in parts:
            states.append(self._random_state())
            with torch.no_grad(), self.precision.encoding():
                cached.append(self.recipe.encode(part))
        leaves = {name: _stack(name, cached).requires_grad_() for name in cached[0]}
        losses = self.recipe.losses(leaves, batch)
        self.precision.scaler.scale(total_loss(losses, self.recipe.weights)).backward()
        sizes = [len(part) for part in parts]
        rows = {name: leaf.grad.split(sizes) for name, leaf in leaves.items() if leaf.ndim and leaf.grad is not None}
        scalars = {name: leaf.grad for name, leaf in leaves.items() if not leaf.ndim and leaf.grad is not None}
        for index, (part, state) in enumerate(zip(parts, states, strict=True)):
            last = index == len(parts) - 1
            self._restore_random_state(state)
            with gradient_sync(self.module, last=last), frozen_statistics(self.module):
                with self.precision.encoding():
                    features = self.recipe.encode(part)
                terms = [(features[name] * gradient[index]).sum() for name, gradient in rows.items()]
                if last:
                    terms += [features[name] * gradient for name, gradient in scalars.items()]
                torch.stack([term.to(terms[0].dtype) for term in terms]).sum().backward()
        return losses

    def _set_learning_rate(self, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = group_rate(group, step, self.config.optim, self.total_steps)
        return main_rate(step, self.config.optim, self.total_steps)

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        on_gpu = self.runtime.device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.runtime.device) if on_gpu else None

    def _restore_random_state(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.runtime.device)


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of weight x loss; a loss without a weight counts 1.

    Raises:
        ValueError: a weight for a loss that the recipe does not have.
    """
    unknown = sorted(set(weights) - set(losses))
    if unknown:
        raise value_error(
            "loss.weights", got=", ".join(unknown), want=", ".join(losses), fix="name the recipe's losses"
        )
    terms = [loss * weights.get(name, 1.0) for name, loss in losses.items()]
    return torch.stack(terms).sum()


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed that mixes run, step and rank."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def split(batch: Batch, parts: int) -> list[Batch]:
    """`parts` micro-batches of this rank's rows, as even as possible; some are empty when there are fewer rows.

    Always that many: under DDP and FSDP2 every rank must make the same number of passes.
    """
    bounds = [len(batch) * part // parts for part in range(parts + 1)]
    return [
        replace(
            batch,
            ids=batch.ids[rows],
            pixels=batch.pixels[rows],
            tokens=batch.tokens[rows],
            captions=batch.captions[rows],
        )
        for rows in (slice(start, stop) for start, stop in itertools.pairwise(bounds))
    ]


def _stack(name: str, parts: list[dict[str, Tensor]]) -> Tensor:
    first = parts[0][name]
    return (torch.cat([part[name] for part in parts]) if first.ndim else first).detach().clone()
