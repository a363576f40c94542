# SPDX-License-Identifier: Apache-2.0
"""The temperature's own learning-rate rule: FastCLIP's known answers, no wait for the device, and exact resumes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from clipkit.optim import parameter_groups, step_threshold_rate
from clipkit.train import parse_config
from clipkit.train import train as train_run
from clipkit.train.config import OptimConfig, ScaleScheduleConfig, ScheduleConfig
from clipkit.train.rates import group_rate
from clipkit.train.step import TrainStep
from tests.train import tiny


def scale_of(tau: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(math.log(1 / tau), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "tau, wanted", [(0.07, 2e-4), (0.0301, 2e-4), (0.03, 2e-4 / 3), (0.01, 2e-4 / 3), (0.031, 2e-4)]
)
def test_the_rate_is_a_third_at_the_threshold_and_below_it(tau, wanted, dtype):
    rate = step_threshold_rate(scale_of(tau, dtype), peak=2e-4)
    assert rate.item() == pytest.approx(wanted, rel=1e-7)
    assert rate.shape == ()
    assert rate.dtype == torch.float32, "torch's fused optimizers read the rate of a GPU's tensor as fp32"


def test_threshold_and_factor_are_settings():
    assert step_threshold_rate(scale_of(0.05), peak=1.0, threshold=0.06, factor=0.25).item() == 0.25
    assert step_threshold_rate(scale_of(0.05), peak=1.0, threshold=0.04, factor=0.25).item() == 1.0


def test_a_scale_of_one_element_gives_a_rate_of_none():
    assert step_threshold_rate(torch.tensor([4.0]), peak=1.0).shape == ()


def test_the_host_does_not_read_the_value():
    """A meta tensor has none: whatever asked for it would raise."""
    assert step_threshold_rate(torch.zeros((), device="meta"), peak=1.0).device.type == "meta"


def groups_of(tau: float) -> dict[str, dict]:
    module = nn.Linear(2, 2)
    module.logit_scale = scale_of(tau)
    groups = parameter_groups(module.named_parameters(), lr=1.0, weight_decay=0.1, lr_scale=0.5)
    return {group["group"]: group for group in groups}


@pytest.mark.parametrize(
    "rule, shape, wanted",
    [
        ("shared", "cosine", [0.25, 0.5, 0.5, 0.25, 0.0]),
        ("cosine", "cosine", [0.25, 0.5, 0.5, 0.25, 0.0]),
        ("shared", "constant", [0.25, 0.5, 0.5, 0.5, 0.5]),
        ("cosine", "constant", [0.25, 0.5, 0.5, 0.25, 0.0]),
        ("constant", "cosine", [0.5] * 5),
    ],
)
def test_rules_that_depend_on_the_step_alone(rule, shape, wanted):
    settings = OptimConfig(
        schedule=ScheduleConfig(shape, warmup_steps=2), scale_schedule=ScaleScheduleConfig(name=rule)
    )
    rates = [group_rate(groups_of(0.07)["scale"], step, settings, 4) for step in (0, 1, 2, 3, 4)]
    assert rates == pytest.approx(wanted)


def test_the_rule_is_not_latched_and_leaves_the_other_groups_alone():
    settings = OptimConfig(schedule=ScheduleConfig(warmup_steps=4), scale_schedule=ScaleScheduleConfig("step_thresh"))
    groups = groups_of(0.07)
    rates = []
    for tau in (0.07, 0.03, 0.031):
        groups["scale"]["params"][0].data.copy_(scale_of(tau))
        rates.append(group_rate(groups["scale"], 0, settings, 10).item())
    assert rates == pytest.approx([0.5, 0.5 / 3, 0.5]), "at step 0 already: no warm-up"
    assert group_rate(groups["decay"], 0, settings, 10) == 0.25


@pytest.mark.parametrize("names", [(), ("a.logit_scale", "b.logit_scale")])
def test_step_thresh_wants_one_scale_to_follow(names):
    settings = OptimConfig(scale_schedule=ScaleScheduleConfig("step_thresh"))
    group = {"group": "scale", "peak_lr": 1.0, "names": names, "params": [scale_of(0.07) for _ in names]}
    with pytest.raises(ValueError, match=r"optim\.scale_schedule\.name: got step_thresh with .*want one trained"):
        group_rate(group, 0, settings, 10)


# In the trainer


@pytest.fixture
def rates(monkeypatch):
    """The scale's rate of each step taken."""
    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
    found, take = {}, TrainStep.__call__

    def and_note(self, batch, step):
        result = take(self, batch, step)
        (group,) = (group for group in self.optimizer.param_groups if group["group"] == "scale")
        found[step] = float(group["lr"])
        return result

    monkeypatch.setattr(TrainStep, "__call__", and_note)
    return found


def run(data, out, steps, **rule):
    tree = tiny.settings(data, out, train__steps=steps)
    # a constant rate for the rest: a cosine would depend on the steps that a part is told to make
    tree["optim"].update(lr_scale=0.05, schedule={"name": "constant"}, scale_schedule=rule)
    train_run(parse_config(tree))
    return tiny.checkpoint_tensors(out, steps)


def test_a_run_that_crosses_the_threshold_resumes_with_the_same_bits(data, tmp_path, rates):
    """The temperature starts at 0.07, and this small run warms it."""
    rule = {"name": "step_thresh", "threshold": 0.074}
    whole = run(data, tmp_path / "whole", 8, **rule)
    straight = dict(rates)
    assert sorted(set(straight.values())) == pytest.approx([0.05 / 3, 0.05]), "the run must pass the threshold"
    assert straight[0] < straight[7]
    rates.clear()
    run(data, tmp_path / "parts", 4, **rule)
    parts = run(data, tmp_path / "parts", 8, **rule)
    assert rates == straight
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_a_rule_that_never_acts_takes_the_steps_of_a_constant_rate(data, tmp_path, rates):
    constant = run(data, tmp_path / "constant", 3, name="constant")
    never = run(data, tmp_path / "never", 3, name="step_thresh", threshold=1e-9)
    for name, value in constant.items():
        torch.testing.assert_close(never[name], value, rtol=1e-6, atol=1e-7, msg=name)
