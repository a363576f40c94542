# SPDX-License-Identifier: Apache-2.0
"""FastCLIPLoss in one process: at γ = 1 the objective with its exact gradient; beyond, the published estimator."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import clipkit
from clipkit.losses import FastCLIPLoss
from tests.reference import naive
from tests.reference.naive import unit

VERSIONS = ("v0", "v1", "v2", "v3", "sogclr", "isogclr")
INDIVIDUAL = ("v2", "isogclr")
SAMPLES, N, RHO, EPS = 30, 12, 1.5, 1e-3
IDS = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(5))[:N]


def make(version, **options):
    return FastCLIPLoss(SAMPLES, version, **{"rho": RHO, "eps": EPS, "decay_epochs": 4, **options})


def pairs(seed=0, dtype=torch.float64):
    return [unit(N, 8, seed + side, dtype).requires_grad_() for side in (0, 1)]


def scale_leaf(value=9.0):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def rows(loss, ids=slice(None)):
    return loss.table().tensors()["rows"][ids]


def proposed(loss):
    """What the last forward proposes, left where it is."""
    proposal = loss._estimates.take()
    loss._estimates.propose(proposal)
    return proposal.samples


def set_rows(loss, ids, values):
    loss.table().write(ids, values)


def divergences(image, text, tau, eps=EPS):
    """log(ε + g) of both sides [N, 2] for temperatures [N, 2]."""
    cosines = image @ text.T
    gaps = [cosines - cosines.diagonal()[:, None], cosines.T - cosines.diagonal()[:, None]]
    off = 1 - torch.eye(N, dtype=cosines.dtype)
    g = [(off * (gap / tau[:, side, None]).exp()).sum(1) / (N - 1) for side, gap in enumerate(gaps)]
    return torch.log(torch.stack(g, dim=1) + eps)


def objective(version, image, text, tau):
    logs = divergences(image, text, tau)
    if version == "v0":
        return logs.mean()
    if version in ("v1", "sogclr"):
        return (tau * logs).mean()
    return (tau * (logs + RHO)).mean()


@pytest.mark.parametrize("version", VERSIONS)
def test_when_every_estimate_is_exact_it_is_half_the_objective_and_its_gradient(version):
    image, text = pairs()
    scale, tau0 = scale_leaf(), 0.2
    loss = make(version, **({"temperature": tau0} if version in INDIVIDUAL else {}))
    value = loss(image, text, scale, IDS)
    value.backward()
    twins = [leaf.detach().clone().requires_grad_() for leaf in (image, text, scale)]
    tau = torch.full((N, 2), tau0, dtype=torch.float64, requires_grad=True)
    used = tau if version in INDIVIDUAL else (1 / twins[2]).expand(N, 2)
    expected = objective(version, *twins[:2], used)
    expected.backward()
    rounded = {"rtol": 1e-6, "atol": 1e-8} if version in INDIVIDUAL else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(value, expected, **rounded)  # temperatures are kept in fp32
    for ours, twin in zip((image, text), twins, strict=False):
        torch.testing.assert_close(ours.grad, twin.grad, **rounded)
    if version in ("v0", "v3"):
        torch.testing.assert_close(scale.grad, twins[2].grad, **rounded)
    else:
        assert scale.grad == 0
    if version in INDIVIDUAL:
        # the objective is a mean over N samples and two sides; the rule's gradient is a sample's own
        own = loss.temperatures.gradient(proposed(loss), EPS, loss.rho)
        torch.testing.assert_close(own, tau.grad * 2 * N, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_with_older_estimates_it_is_the_published_estimator(version):
    """½ (1/N) Σ w g / (u' + ε) differentiated at constant u', times τ where the objective carries it."""
    image, text = pairs(2)
    scale = scale_leaf()
    loss = make(version)
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(N, 2, generator=generator)
    tau = 0.05 + 0.3 * torch.rand(N, 2, generator=generator)
    full = torch.cat([state, tau, torch.zeros(N, 4)], dim=1) if version in INDIVIDUAL else state
    set_rows(loss, IDS, full)
    loss.set_epoch(2)
    assert loss.gamma == pytest.approx(0.2 if version in ("sogclr", "isogclr") else 0.6)
    loss(image, text, scale, IDS).backward()

    twins = [leaf.detach().clone().requires_grad_() for leaf in (image, text, scale)]
    used = tau.double() if version in INDIVIDUAL else (1 / twins[2]).expand(N, 2)
    g = divergences(*twins[:2], used, eps=0).exp()
    u = (1 - loss.gamma) * state.double().exp() + loss.gamma * g.detach()
    weight = 1.0 if version == "v0" else used.detach()
    surrogate = (weight * g / (u + EPS)).mean()
    if version == "v3":
        surrogate = surrogate + ((u + EPS).log().mean() + RHO) / twins[2]
    surrogate.backward()
    for ours, twin in zip((image, text), twins, strict=False):
        torch.testing.assert_close(ours.grad, twin.grad, rtol=1e-6, atol=1e-9)
    if version in ("v0", "v3"):
        torch.testing.assert_close(scale.grad, twins[2].grad, rtol=1e-9, atol=1e-12)
    loss.commit()
    torch.testing.assert_close(rows(loss, IDS)[:, :2].double().exp(), u, rtol=1e-5, atol=1e-7)


def test_without_its_tau_an_anchor_of_rgcl_weighs_what_the_published_code_gives_it():
    """tau_weight="reference": each anchor 1/τ more than the objective says; equal temperatures make v0 of it."""
    image, text = pairs(4)
    make("v2", tau_weight="reference", temperature=1 / 9)(image, text, 1.0, IDS).backward()
    same = pairs(4)
    make("v0")(*same, 9.0, IDS).backward()
    for ours, twin in zip((image, text), same, strict=True):
        torch.testing.assert_close(ours.grad, twin.grad, rtol=1e-6, atol=1e-9)
    weighted = pairs(4)
    make("v2", temperature=1 / 9)(*weighted, 1.0, IDS).backward()
    torch.testing.assert_close(9 * weighted[0].grad, image.grad, rtol=1e-6, atol=1e-9)


def test_different_temperatures_weigh_by_their_inverse_without_tau():
    image, text = pairs(6)
    loss = make("v2", tau_weight="reference")
    tau = torch.linspace(0.05, 0.5, 2 * N).view(N, 2)
    set_rows(loss, IDS, torch.cat([torch.zeros(N, 2), tau, torch.zeros(N, 4)], dim=1))
    loss.set_epoch(1)
    loss(image, text, 1.0, IDS).backward()
    twins = [leaf.detach().clone().requires_grad_() for leaf in (image, text)]
    g = divergences(*twins, tau.double(), eps=0).exp()
    u = (1 - loss.gamma) + loss.gamma * g.detach()
    (g / (u + EPS)).mean().backward()
    torch.testing.assert_close(image.grad, twins[0].grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(text.grad, twins[1].grad, rtol=1e-6, atol=1e-9)


def test_the_published_temperature_gradient_has_its_pair_term_twice():
    """exact = 𝒜 + ½ τ ∂F/∂τ, reference = 𝒜 + τ ∂F/∂τ, with 𝒜 = ρ + ½ mean(log u1 + log u2)."""
    found = {}
    for rule in ("exact", "reference"):
        scale = scale_leaf()
        loss = make("v3", tau_grad=rule, eps=0.0)
        loss(*pairs(), scale, IDS).backward()
        found[rule] = -float(scale.grad) * 81.0  # ∂/∂τ = -s² ∂/∂s
        outer = RHO + float(proposed(loss).log_u.mean())
    assert found["reference"] - outer == pytest.approx(2 * (found["exact"] - outer), rel=1e-9)


def test_the_exact_temperature_gradient_is_rho_less_a_divergence():
    """γ = 1, ε = 0: ρ - KL(softmax over negatives ‖ uniform), at least ρ - ln(N-1); for two pairs exactly ρ."""
    image, text = (tower.detach() for tower in pairs())
    scale = scale_leaf(30.0)
    make("v3", eps=0.0)(image, text, scale, IDS).backward()
    logits = (30.0 * image @ text.T).fill_diagonal_(-math.inf)
    divergence = sum(
        (p.softmax(1) * (p.softmax(1) * (N - 1)).log().nan_to_num(neginf=0.0)).sum(1).mean() for p in (logits, logits.T)
    )
    assert -float(scale.grad) * 900 == pytest.approx(RHO - float(divergence) / 2, rel=1e-9)
    two = scale_leaf(30.0)
    with pytest.warns(UserWarning, match="rho"):
        make("v3", eps=0.0)(image[:2], text[:2], two, IDS[:2]).backward()
    assert -float(two.grad) * 900 == pytest.approx(RHO, rel=1e-9)


@pytest.mark.parametrize("version", ["v3", "v2"])
def test_only_a_commit_stores_and_only_the_batch(version):
    loss = make(version)
    before = rows(loss).clone()
    for _ in range(2):  # the same batch again, as GradCache or a skipped step would
        loss(*pairs(), 9.0, IDS)
        assert torch.equal(rows(loss), before)
    loss.commit(skip=torch.tensor(1.0))
    assert torch.equal(rows(loss), before)
    loss(*pairs(), 9.0, IDS)
    loss.commit()
    others = torch.ones(SAMPLES, dtype=torch.bool)
    others[IDS] = False
    assert torch.equal(rows(loss, others), before[others])
    assert not torch.equal(rows(loss, IDS), before[IDS])
    once = rows(loss).clone()
    loss.commit()
    assert torch.equal(rows(loss), once)


def test_evaluation_proposes_nothing():
    loss = make("v3").eval()
    before = rows(loss).clone()
    loss(*pairs(), 9.0, IDS)
    loss.commit()
    loss.train()
    with torch.no_grad():
        loss(*pairs(), 9.0, IDS)
    loss.commit()
    assert torch.equal(rows(loss), before)


@pytest.mark.parametrize("version", ["v3", "v2"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_went_wrong_shows_in_the_loss_and_stores_nothing(version, value):
    """One bad picture: the step may have been left out by whoever saw the loss, and estimates would outlive it."""
    loss = make(version)
    loss(*pairs(), 9.0, IDS)
    loss.commit()
    before = rows(loss).clone()
    loss.set_epoch(1)
    image, text = (tower.detach().clone() for tower in pairs(1))
    image[3, 2] = value
    assert not loss(image, text, 9.0, IDS).isfinite()
    loss.commit(skip=torch.tensor(0.0))
    assert torch.equal(rows(loss), before)
    loss(*pairs(1), 9.0, IDS)
    loss.commit()
    assert rows(loss, IDS).isfinite().all()
    assert not torch.equal(rows(loss), before)


def test_a_scaler_that_skips_the_step_skips_the_commit():
    weight = torch.nn.Parameter(torch.ones(8, 8))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    loss = make("v3")
    loss.commit_after(optimizer)
    image, text = (tower.detach().float() for tower in pairs())
    for overflow in (True, False):
        before = rows(loss).clone()
        optimizer.zero_grad()
        scaler.scale(loss(image @ weight, text @ weight, 9.0, IDS)).backward()
        if overflow:
            weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(rows(loss), before) == overflow
    assert not torch.equal(weight, torch.ones(8, 8))


def test_a_loss_that_is_never_committed_is_complained_about():
    loss = make("v3")
    for _ in range(20):
        loss(*pairs(), 9.0, IDS)
    with pytest.warns(UserWarning, match="never committed"):
        loss(*pairs(), 9.0, IDS)


def test_epochs_that_are_never_told_are_complained_about_once():
    def train(loss, batches):
        for _ in range(batches):
            loss(*pairs(), 9.0, IDS)
            loss.commit()

    loss, told = make("v3"), make("v3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(loss, 2 * SAMPLES // N)
        train(told, 2)
        told.set_epoch(1)
        train(told, 2 * SAMPLES // N)
    with pytest.warns(UserWarning, match="set_epoch") as caught:
        train(loss, 3)
    assert len(caught) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_the_order_of_the_batch_and_the_names_of_the_samples_do_not_show(version):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    renamed = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(4))
    results = []
    for permute, names in ((torch.arange(N), torch.arange(SAMPLES)), (order, torch.arange(SAMPLES)), (order, renamed)):
        loss = make(version)
        for epoch in (0, 2):
            image, text = [tower.detach()[permute].requires_grad_() for tower in pairs(epoch)]
            loss.set_epoch(epoch)
            loss(image, text, 9.0, names[IDS][permute]).backward()
            loss.commit()
        back = permute.argsort()
        results.append((image.grad[back], text.grad[back], rows(loss, names)))
    for other in results[1:]:
        for ours, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_an_id_twice_in_a_batch_keeps_the_first_of_its_new_estimates():
    ids = IDS.clone()
    ids[7] = ids[2]
    loss, apart = make("v3"), make("v3")
    loss(*pairs(), 9.0, ids)
    loss.commit()
    apart(*pairs(), 9.0, IDS)
    apart.commit()
    assert torch.equal(rows(loss, ids[2]), rows(apart, IDS[2]))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_gaps_of_two_at_a_high_scale_overflow_nowhere(version, scale):
    image = unit(N, 8, 0, torch.float32)
    text = torch.where(torch.arange(N)[:, None] % 2 == 0, image, -image)  # positives at 1 and -1
    loss = make(version, eps=1e-14, **({"temperature": 0.01} if version in INDIVIDUAL else {}))
    for epoch in (0, 1, 3):
        loss.set_epoch(epoch)
        towers = [image.clone().requires_grad_(), text.clone().requires_grad_()]
        learned = torch.tensor(scale, requires_grad=True)
        value = loss(*towers, learned, IDS)
        value.backward()
        assert value.isfinite()
        assert learned.grad.isfinite()
        assert all(tower.grad.isfinite().all() for tower in towers)
        loss.commit()
        assert rows(loss, IDS).isfinite().all()


@pytest.mark.parametrize(
    "epochs, least, points",
    [
        (18, 0.2, {1: 0.993923, 6: 0.8, 9: 0.6, 12: 0.4, 17: 0.206077, 18: 0.2, 30: 0.2}),
        (16, 0.2, {8: 0.6}),
        (10, 0.8, {5: 0.9, 9: 0.804894}),
    ],
)
def test_gamma(epochs, least, points):
    loss = FastCLIPLoss(4, "v3", gamma=least, decay_epochs=epochs)
    for epoch, expected in points.items():
        loss.set_epoch(epoch)
        assert loss.gamma == pytest.approx(expected, abs=1e-6)
    constant = FastCLIPLoss(4, "sogclr", gamma=least)
    for epoch, expected in ((0, 1.0), (0.99, 1.0), (1, least), (7, least)):
        constant.set_epoch(epoch)
        assert constant.gamma == expected
    loss.set_epoch(epochs / 2 + 0.25)  # between epochs, for a γ that moves every step
    assert least < loss.gamma < (1 + least) / 2


class TestTemperatures:
    """The rule of v2 and isogclr, step by step."""

    @staticmethod
    def step(loss, epoch, seed=0):
        loss.set_epoch(epoch)
        before = rows(loss, IDS).double()
        loss(*pairs(seed), 1.0, IDS)
        gradient = loss.temperatures.gradient(proposed(loss), EPS, loss.rho)
        loss.commit()
        return before, gradient, rows(loss, IDS).double()

    def test_adam(self):
        loss = make("v2", temperature=0.1, tau_lr=1e-3)
        parameter = torch.nn.Parameter(torch.full((N, 2), 0.1, dtype=torch.float64))
        adam = torch.optim.Adam([parameter], lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
        for epoch in range(3):
            _, gradient, after = self.step(loss, epoch, seed=epoch)
            parameter.grad = gradient
            adam.step()
            torch.testing.assert_close(after[:, 2:4], parameter.detach(), rtol=1e-5, atol=1e-7)

    def test_the_published_rule(self):
        """Epoch 0 takes a step of the rate in the gradient's direction; the next divides 0.9 g + 0.1 g by 0.19."""
        loss = make("v2", temperature=0.1, tau_lr=1e-3, tau_adam="reference")
        _, first, after = self.step(loss, 0)
        torch.testing.assert_close(after[:, 2:4], 0.1 - 1e-3 * first.sign(), rtol=1e-5, atol=1e-7)
        before, second, after = self.step(loss, 1, seed=2)
        m, v = 0.9 * first + 0.1 * second, 0.999 * first**2 + 0.001 * second**2
        moved = before[:, 2:4] - 1e-3 * (m / 0.19) / ((v / (1 - 0.999**2)).sqrt() + 1e-8)
        torch.testing.assert_close(after[:, 2:4], moved, rtol=1e-4, atol=1e-7)

    def test_without_the_root(self):
        loss = make("v2", temperature=0.1, tau_lr=1e-4, tau_adam="unrooted")
        _, gradient, after = self.step(loss, 0)
        torch.testing.assert_close(after[:, 2:4], 0.1 - 1e-4 / gradient, rtol=1e-4, atol=1e-7)

    def test_bounds_and_clamp(self):
        loss = make("v2", temperature=0.011, tau_lr=0.5, rho=100.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, gradient, after = self.step(loss, 0)
        assert (gradient == 5.0).all()
        assert (after[:, 2:4] == torch.tensor(0.01).double()).all()
        assert loss.mean_temperature == pytest.approx(0.011, rel=1e-6)


def test_rho_that_no_batch_can_reach_is_complained_about():
    with pytest.warns(UserWarning, match=r"rho: got 2.5; want less than ln\(N-1\) = 2.40"):
        make("v3", rho=2.5)(*pairs(), 9.0, IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("v3", rho=2.5, tau_grad="reference")(*pairs(), 9.0, IDS)
        make("v1", rho=2.5)(*pairs(), 9.0, IDS)


def test_rho_that_nobody_chose_is_half_of_what_a_batch_can_show():
    half = math.log(N - 1) / 2
    for version in ("v3", "v2"):
        grads = []
        for rho in (None, half):
            image, text = pairs()
            scale = scale_leaf()
            loss = make(version, rho=rho)
            loss(image, text, scale, IDS).backward()
            loss.commit()
            grads.append((image.grad, scale.grad, rows(loss)))
        assert all(torch.equal(*both) for both in zip(*grads, strict=True))
    published, chosen = make("v3", rho=None, tau_grad="reference"), make("v3", rho=6.5, tau_grad="reference")
    assert torch.equal(published(*pairs(), 9.0, IDS), chosen(*pairs(), 9.0, IDS))


def test_keys_of_a_batch_that_never_came_to_its_loss_are_dropped():
    loss = make("v3")
    loss.image_ready(pairs()[0])
    loss.begin(IDS)
    assert loss._image_keys is None


@pytest.mark.parametrize("version", ["v3", "v2"])
def test_a_state_dict_goes_on_where_it_was(version, tmp_path):
    def train(loss, epochs):
        for epoch in epochs:
            loss.set_epoch(epoch)
            loss(*pairs(epoch), 9.0, IDS)
            loss.commit()

    straight, first, second = make(version), make(version), make(version)
    train(straight, (0, 1, 2))
    train(first, (0, 1))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.epoch == 1
    train(second, (2,))
    assert torch.equal(rows(second), rows(straight))


def test_inside_another_module_a_state_that_lacks_the_loss_says_so():
    def model():
        return torch.nn.ModuleDict({"towers": torch.nn.Linear(2, 2), "loss": make("v3")})

    saved, fresh = model(), model()
    saved["loss"](*pairs(), 9.0, IDS)
    saved["loss"].commit()
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(rows(fresh["loss"]), rows(saved["loss"]))
    towers = {name: value for name, value in saved.state_dict().items() if name.startswith("towers")}
    before = rows(fresh["loss"]).clone()
    fresh.load_state_dict(towers, strict=False)
    with pytest.raises(RuntimeError, match=r"loss\.rows"):
        fresh.load_state_dict(towers)
    assert torch.equal(rows(fresh["loss"]), before)


def test_a_state_of_other_data_is_refused_before_anything_is_taken():
    theirs = make("v3", index="a1")
    theirs(*pairs(), 9.0, IDS)
    theirs.commit()
    for ours, text in (
        (make("v3", index="b2"), "want one for 30 samples of index b2"),
        (FastCLIPLoss(31, "v3", index="a1"), "want one for 31 samples"),
        (make("v2", index="a1"), "version: got v2, and a state of v3"),
    ):
        before = rows(ours).clone()
        with pytest.raises(ValueError, match=text):
            ours.load_state_dict(theirs.state_dict())
        assert torch.equal(rows(ours), before)
    make("v1", index="a1").load_state_dict(theirs.state_dict())  # the same columns


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: make("v4"), "version: got 'v4'"),
        (lambda: FastCLIPLoss(0), "num_samples: got 0"),
        (lambda: make("v3", gamma=0.0), "gamma: got 0.0"),
        (lambda: make("v3", gamma_schedule="linear"), "gamma_schedule: got 'linear'"),
        (lambda: make("v3", decay_epochs=0), "decay_epochs: got 0"),
        (lambda: make("v3", eps=-1.0), "eps: got -1.0"),
        (lambda: make("v3", tau_grad="half"), "tau_grad: got 'half'"),
        (lambda: make("v2", tau_weight="none"), "tau_weight: got 'none'"),
        (lambda: make("v2", tau_adam="amsgrad"), "tau_adam: got 'amsgrad'"),
        (lambda: make("v2", tau_lr=-1.0), "tau_lr: got -1.0"),
        (lambda: make("v2", tau_eps=0.0), "tau_eps: got 0.0"),
        (lambda: make("v2", tau_betas=(0.9, 1.0)), "tau_betas: got (0.9, 1.0)"),
        (lambda: make("v2", temperature=2.0), "temperature: got 2.0"),
        (lambda: make("v1", temperature=0.07), "temperature: got 0.07 for v1; want nothing"),
        (lambda: make("v3", placement="disk"), "placement: got 'disk'"),
        (lambda: make("v3").set_epoch(-1), "epoch: got -1"),
        (lambda: make("v3")(*pairs(), 9.0, IDS[:3]), "sample_ids: got 3 ids"),
        (lambda: make("v3")(*pairs(), 9.0, IDS + SAMPLES), "sample_ids: got"),
        (lambda: make("v3")(*pairs(), 9.0, IDS.float()), "sample_ids: got"),
        (lambda: make("v3")(*pairs(), 9.0, [1, 2]), "sample_ids: got a list"),
        (lambda: make("v3")(*pairs(), 9.0, IDS.to("meta")), "sample_ids: got 12 ids on meta"),
        (lambda: make("v3")(pairs()[0][:1], pairs()[1][:1], 9.0, IDS[:1]), "use a larger batch"),
    ],
)
def test_mistakes_are_named(call, text):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert text in str(error.value)


def test_it_equals_clip_when_gamma_is_one_and_eps_the_share_of_the_positive():
    image, text = pairs()
    scale = scale_leaf()
    make("v0", eps=1 / (N - 1))(image, text, scale, IDS).backward()
    twins = [*pairs(), scale_leaf()]
    naive.clip(*twins).backward()
    for ours, twin in zip((image, text, scale), twins, strict=True):
        torch.testing.assert_close(ours.grad, twin.grad, rtol=1e-9, atol=1e-12)


def test_public_names():
    assert clipkit.FastCLIPLoss is FastCLIPLoss
    loss = make("v3")
    assert list(loss(*pairs(), 9.0, IDS, output_dict=True)) == ["contrastive_loss"]
    assert list(loss.parameters()) == []
