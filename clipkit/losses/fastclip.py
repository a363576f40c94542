# SPDX-License-Identifier: Apache-2.0
"""`FastCLIPLoss`: the global contrastive losses of SogCLR, iSogCLR and FastCLIP v0 to v3 (arXiv 2407.01445)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from clipkit.errors import value_error
from clipkit.functional._anchors import begin_keys
from clipkit.functional._checks import as_scalar, check_choice, check_fraction, check_pair, common_type
from clipkit.functional.global_contrastive import Surrogate, log_plus, surrogate
from clipkit.losses._estimates import Estimates, Proposal
from clipkit.losses._host import HostLoss, touch
from clipkit.losses._temperatures import AdamRule, TemperatureRule
from clipkit.losses._versions import GammaSchedule, find_version, inner_rate
from clipkit.parallel import Gathering, Layout, Placement, SampleTable, announced, group_name

NEVER = -math.inf
"""log u of a sample that was not visited yet."""

PUBLISHED_RHO = 6.5
"""Of v3 on CC3M at a global batch of 1024, with the published code's gradient."""


class FastCLIPLoss(HostLoss):
    """A loss over the whole data set from small batches, with a running estimate of each sample's normaliser.

        loss = FastCLIPLoss(len(dataset), "v3", decay_epochs=epochs // 2)
        loss.commit_after(optimizer)
        for epoch in range(epochs):
            loss.set_epoch(epoch)
            for images, texts, ids in loader:
                loss(image_features, text_features, logit_scale, ids).backward(); optimizer.step(); ...

    `forward` reads the estimates u of the batch's samples and only proposes new ones; `commit` stores them, once the
    step is known to count. The value returned is that of the objective, estimated from u, with the gradient of the
    published estimator; half of the published objectives throughout, so that v0's gradient with γ = 1 and
    ε = 1/(N-1) is CLIP's.

    | version | objective | temperature τ | γ |
    |---|---|---|---|
    | v0 | mean log(ε + g) | learned with the model | cosine |
    | v1, sogclr | τ mean log(ε + g) | constant | cosine, constant |
    | v2, isogclr | mean τ_i (log(ε + g_i) + ρ) | one for each sample and side, kept here | cosine, constant |
    | v3 | τ (mean log(ε + g) + ρ) | learned with the model | cosine |

    Attributes:
        epoch: as `set_epoch` set it.
        mean_temperature: v2, isogclr: the mean individual temperature of the last batch, 0-D.

    Args:
        num_samples: how many samples the data set has; ids are 0 <= id < num_samples.
        version: "v0" to "v3", "sogclr" or "isogclr".
        gamma: the least inner learning rate γ, in (0, 1].
        gamma_schedule: "cosine" or "constant"; None for the version's own.
        decay_epochs: epochs over which the cosine falls; the paper takes half of the run's.
        eps: ε >= 0 inside the logarithm.
        rho: ρ of v2, isogclr and v3: what the KL divergence of the softmax over negatives from the uniform one is
            driven to. With exact gradients it must lie below ln(N-1), the most that a batch can show, or temperatures
            only ever fall; None: half of that. With tau_grad="reference" None is the published 6.5.
        tau_grad: v0 and v3: "exact", or "reference" for the published code, whose pair term is doubled; the published
            ρ belong to that.
        temperature: v2, isogclr: where individual temperatures begin, 0.03 if None. The others take logit_scale's.
        tau_lr, tau_betas, tau_eps, tau_min, tau_max, tau_adam: v2, isogclr: how they move; see `TemperatureRule`.
        tau_weight: v2, isogclr: "objective" weighs each anchor by its τ, as the objective does; "reference" does not.
        placement: where the estimates live: "replicated" on all ranks, "sharded" by sample id, or "auto" by size.
        payload: the type that features travel between ranks in, such as torch.bfloat16; None for their own.
        index: whatever names the data set's index (a fingerprint); a state that was saved with another is refused.
        group: the process group that shares the batch; None for the world once torch.distributed is initialised.
        backend: the engine's backend by name; None for the device's default.

    Raises:
        ValueError, TypeError: an argument is not as described.
    """

    def __init__(
        self,
        num_samples: int,
        version: str = "v3",
        *,
        gamma: float = 0.2,
        gamma_schedule: GammaSchedule | None = None,
        decay_epochs: float = 10,
        eps: float = 1e-14,
        rho: float | None = None,
        tau_grad: Literal["exact", "reference"] = "exact",
        temperature: float | None = None,
        tau_lr: float = 1e-3,
        tau_betas: tuple[float, float] = (0.9, 0.999),
        tau_eps: float = 1e-8,
        tau_min: float = 0.01,
        tau_max: float = 1.0,
        tau_adam: AdamRule = "exact",
        tau_weight: Literal["objective", "reference"] = "objective",
        placement: Placement = "auto",
        payload: torch.dtype | None = None,
        index: str | None = None,
        group: ProcessGroup | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(0, 1, group, backend)
        self.version, self.num_samples, self.index = version, num_samples, index
        self._kind = find_version(version)
        check_fraction("gamma", gamma, low=0.0, high=1.0, low_open=True)
        check_fraction("eps", eps, low=0.0, high=math.inf)
        if rho is not None:
            check_fraction("rho", rho, low=0.0, high=math.inf)
        check_fraction("decay_epochs", decay_epochs, low=0.0, high=math.inf, low_open=True)
        check_choice("tau_grad", tau_grad, ("exact", "reference"))
        check_choice("tau_weight", tau_weight, ("objective", "reference"))
        self.gamma_schedule = gamma_schedule or self._kind.gamma_schedule
        check_choice("gamma_schedule", self.gamma_schedule, ("cosine", "constant"))
        self.gamma_min, self.decay_epochs, self.eps, self.rho = gamma, decay_epochs, eps, rho
        self.tau_grad, self.tau_weight, self.payload, self.placement = tau_grad, tau_weight, payload, placement
        self.temperatures = None
        if self._kind.temperature == "individual":
            start = 0.03 if temperature is None else temperature
            self.temperatures = TemperatureRule(start, tau_min, tau_max, tau_lr, tau_betas, tau_eps, adam=tau_adam)
        elif temperature is not None:
            raise value_error(
                "temperature",
                got=f"{temperature} for {version}",
                want="nothing: its temperature is 1 / logit_scale",
                fix="pass logit_scale=1 / temperature to each call (clipkit train: model.overrides.init_logit_scale)",
            )
        initial = [NEVER, NEVER, *(self.temperatures.initial if self.temperatures else [])]
        self._estimates = Estimates(num_samples, initial, placement, self.ranks, backend)
        self.epoch = 0.0
        self._image_keys: Gathering | None = None
        self._overwritten, self._seen, self._warned_of_rho = 0, 0, False
        self.mean_temperature: Tensor | None = None

    # The batch

    def begin(self, sample_ids: Tensor) -> None:
        """Start to fetch what is known of these samples [n], before the towers run; `forward` takes the same tensor.

        Optional, and worth it where the table is sharded: every rank must call it then.
        """
        self._image_keys = None  # of a batch that never came to its loss
        self._estimates.begin(sample_ids)

    def image_ready(self, image_features: Tensor) -> None:
        """Start to send this rank's image features [n, d] while the text tower runs (`CLIP.forward(image_ready=...)`).

        Optional; on all ranks or on none. `forward` takes the same values.
        """
        name = group_name(self.ranks())
        layout = Layout.of(image_features, name, settings=("image_ready", self.payload))
        self._image_keys = begin_keys(image_features, layout, self.payload)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        sample_ids: Tensor,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss (0-D, fp32; float64 for float64 features), or {"contrastive_loss": loss} with `output_dict`.

        Args:
            image_features: this rank's normalised rows [n, d].
            text_features: [n, d].
            logit_scale: the multiplier 1/τ, already exponentiated; only v0 and v3 give it a gradient, v2 and isogclr do
                not use it.
            sample_ids: int64 [n], on the features' device. Of an id that occurs twice in the global batch both
                occurrences read the same estimate, and the first in the batch's order is stored.
            output_dict: return a dictionary, as open_clip's trainer asks.

        Raises:
            TypeError, ValueError: as `clipkit.global_contrastive_loss`; ids out of range or not as many as rows.
        """
        group = self.ranks()
        with announced(group_name(group)):
            check_pair(image_features=image_features, text_features=text_features)
            self._estimates.check(sample_ids, image_features)
            image, text = common_type(image_features, text_features)
            scale = as_scalar("logit_scale", logit_scale, image)
        rows = self._estimates.read(sample_ids).to(scale.dtype)
        keys, self._image_keys = self._image_keys, None
        learned = self._kind.temperature == "learnable"
        found = surrogate(
            image,
            text,
            1 / rows[:, 2:4] if self.temperatures else scale if learned else scale.detach(),
            rows[:, :2],
            gamma=self.gamma,
            eps=self.eps,
            tau_grad=self.tau_grad,
            tau_weighted=self.temperatures is not None and self.tau_weight == "objective",
            ids=sample_ids,
            image_keys=None if keys is None else keys.wait(),
            payload=self.payload,
            group=group,
            backend=self.backend,
        )
        if self.temperatures:
            self.mean_temperature = found.samples.scales.reciprocal().mean()
        if self.training and torch.is_grad_enabled():
            self._warn_of_overwriting(self._estimates.propose(Proposal(found.samples, int(self.epoch))))
        loss = self._objective(found, scale)
        loss = loss if learned else touch(loss, logit_scale)
        return {"contrastive_loss": loss} if output_dict else loss

    def _objective(self, found: Surrogate, scale: Tensor) -> Tensor:
        """The estimated objective, with the estimator's gradient."""
        logs, rho = log_plus(found.samples.log_u, self.eps), self._rho(len(found.samples.log_u))
        estimator = found.loss
        if self._kind.objective == "unscaled":
            value = logs.mean()
        elif self._kind.objective == "gcl":
            value, estimator = logs.mean() / scale, estimator / scale.detach()
        elif self._kind.objective == "rgcl":
            value = ((logs + rho) / found.samples.scales).mean()
        else:
            value = (logs.mean() + rho) / scale
            estimator = estimator / scale.detach() + value
        return estimator + (value - estimator).detach()

    # The state

    @property
    def gamma(self) -> float:
        """γ at the present epoch."""
        schedule: Any = self.gamma_schedule
        return inner_rate(self.epoch, least=self.gamma_min, schedule=schedule, decay_epochs=self.decay_epochs)

    def set_epoch(self, epoch: float) -> None:
        """Where the run is, counted from 0: whole epochs as published, or steps / steps_per_epoch for a γ that moves
        every step.
        """
        check_fraction("epoch", epoch, low=0.0, high=math.inf)
        self.epoch = epoch

    def commit(self, skip: Tensor | None = None) -> None:
        """Store what the last forward in training proposed. Once per optimizer step, after it; no collective.

        Of a batch with an estimate that is not finite (NaN in its features, an id out of range on a GPU) nothing is.

        Args:
            skip: 0-D, on the device: where it is not zero nothing is stored (a step that overflowed), without waiting
                to know. A step that the host knows was not taken needs no call: the next forward replaces the proposal.
        """
        proposal = self._estimates.take()
        if proposal is None:
            return
        samples, table = proposal.samples, self.table()
        self._overwritten = 0
        self._warn_of_epoch(len(samples.ids))
        # NaN in the table would never leave it, while the step that made it may have been left out.
        wrong = ~samples.log_u.isfinite().all()
        skip = wrong if skip is None else wrong | (skip != 0)
        ids, rows = samples.ids.squeeze(1), samples.log_u
        if self.temperatures is not None:
            old = table.held(ids)[:, 2:]
            gradient = self.temperatures.gradient(samples, self.eps, self._rho(len(ids))).to(old.dtype)
            rows = torch.cat([rows.to(old.dtype), self.temperatures.advance(old, gradient, proposal.epoch)], dim=1)
        table.write(ids, rows, skip=skip)

    def commit_after(self, optimizer: Optimizer) -> RemovableHandle:
        """Commit whenever `optimizer` has stepped. A GradScaler that skips the step thereby skips the commit; one that
        leaves it to a fused optimizer tells that by `found_inf`, which is heeded without waiting for it.
        """

        def after_step(stepped: Optimizer, *_: Any) -> None:
            overflow = getattr(stepped, "found_inf", None)
            self.commit(None if overflow is None else overflow.to(self.table().device))

        return optimizer.register_step_post_hook(after_step)

    def table(self, device: torch.device | str | None = None) -> SampleTable:
        """The estimates, made at the first use: log u of image and text; individual temperatures and their moments."""
        return self._estimates.table(device)

    def _rho(self, total: int) -> float:
        """ρ for a global batch of `total` pairs."""
        reference = self._kind.objective == "rgcl-g" and self.tau_grad == "reference"
        most = math.log(max(total - 1, 1))
        if self.rho is None:
            return PUBLISHED_RHO if reference else most / 2
        if self._kind.objective in ("rgcl", "rgcl-g") and not reference and self.rho >= most:
            self._warn_of_rho(self.rho, total)
        return self.rho

    def _warn_of_overwriting(self, overwritten: bool) -> None:
        self._overwritten += overwritten
        if self._overwritten == 20:  # an fp16 run that starts overflows a few times in a row
            warnings.warn(
                "FastCLIPLoss: 20 batches in a row were never committed, so no estimate is ever stored; call "
                "loss.commit() after each optimizer.step(), or loss.commit_after(optimizer) once",
                stacklevel=4,
            )

    def _warn_of_rho(self, rho: float, total: int) -> None:
        if not self._warned_of_rho:
            self._warned_of_rho = True
            warnings.warn(
                f"rho: got {rho}; want less than ln(N-1) = {math.log(max(total - 1, 1)):.2f} for a global batch of "
                f"N = {total}: temperatures will only fall, to their lower bound; lower rho, or use "
                'tau_grad="reference" with a published one (v3)',
                stacklevel=5,
            )

    def _warn_of_epoch(self, samples: int) -> None:
        self._seen += samples
        if self.epoch < 1 and self.gamma_min < 1 and self._seen - samples <= 2 * self.num_samples < self._seen:
            warnings.warn(
                "FastCLIPLoss: two passes over the data set and still in epoch 0, in which gamma is 1; "
                "call loss.set_epoch(epoch) at the start of each epoch, or nothing is ever averaged",
                stacklevel=3,
            )

    def get_extra_state(self) -> dict[str, Any]:
        """What the state belongs to, in plain values."""
        return {"version": self.version, "num_samples": self.num_samples, "index": self.index, "epoch": self.epoch}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Check that a state belongs to this loss and these data, and take its epoch.

        Raises:
            ValueError: another version, another number of samples, or another index.
        """
        individual = find_version(state["version"]).temperature == "individual"
        if individual != (self.temperatures is not None):
            raise value_error(
                "version",
                got=f"{self.version}, and a state of {state['version']}, which keeps other numbers of a sample",
                want="a state of a version with the same columns",
                fix=f"make the loss with version={state['version']!r}",
            )
        if state["num_samples"] != self.num_samples or state["index"] != self.index:
            raise value_error(
                "index",
                got=f"a state for {state['num_samples']} samples of index {state['index']}",
                want=f"one for {self.num_samples} samples of index {self.index}",
                fix="ids would mean other samples: restore the data that the state was made with, or start anew",
            )
        self.epoch = state["epoch"]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._estimates.save_to(destination, prefix)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """The table is no buffer, because it is made at the first use, on the device and for the group of that time."""
        own = self._estimates.names(prefix)
        rest = {name: value for name, value in state_dict.items() if name not in own}
        # refuses a state of other data before any is taken
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        missing = self._estimates.load_from(state_dict, prefix)
        missing_keys.extend(missing if strict else [])
