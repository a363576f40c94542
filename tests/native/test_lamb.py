# SPDX-License-Identifier: Apache-2.0
"""What LAMB's kernel bodies and the CPU's passes promise beyond the optimizer's steps (tests/optim): order, rounding,
launches.
"""

import pytest
import torch

from clipkit.engine.lamb import LambTensors, lamb

pytestmark = pytest.mark.usefixtures("on_host")


@pytest.fixture(params=["cuda", "avx512", "avx2", "portable"])
def backend(request, native):
    """The kernels' bodies on the host, and the CPU's passes on each instruction set that is here."""
    if request.param == "cuda":
        yield "cuda"
        return
    if request.param not in native.instruction_sets():
        pytest.skip(f"no {request.param} on this processor")
    before = native.instruction_set()
    native.use_instruction_set(request.param)
    yield "cpu"
    native.use_instruction_set(before)


def tensors(counts, dtype=torch.float32, **changes):
    generator = torch.Generator().manual_seed(0)
    weights, gradients = ([torch.randn(count, generator=generator) for count in counts] for _ in range(2))
    options = LambTensors(
        weights=weights,
        gradients=[gradient.to(dtype) for gradient in gradients],
        means=[torch.zeros_like(weight) for weight in weights],
        variances=[torch.zeros_like(weight) for weight in weights],
        copies=None if dtype == torch.float32 else [torch.zeros_like(weight, dtype=dtype) for weight in weights],
        steps=[torch.ones(()) for _ in weights],
        rates=[0.01] * len(weights),
        decays=[0.05] * len(weights),
        betas=(0.9, 0.98),
        eps=1e-6,
        trust="nvlamb",
        skip=None,
        multiply=None,
    )
    return options._replace(**changes)


def test_norms_equal_float64_and_are_added_up_in_a_fixed_order(backend):
    problem = tensors([1, 255, 16384, 16385, 150_000])
    norms, _ = lamb(problem, backend=backend)
    again, _ = lamb(tensors([1, 255, 16384, 16385, 150_000]), backend=backend)
    assert torch.equal(norms, again)
    wanted = torch.stack([weight.double().square().sum() for weight in problem.weights])
    torch.testing.assert_close(norms[:, 0].double(), wanted, rtol=1e-6, atol=0)
    updates = [
        (m.double() / 0.1) / ((v.double() / 0.02).sqrt() + 1e-6) + 0.05 * w.double()
        for w, m, v in zip(problem.weights, problem.means, problem.variances, strict=True)
    ]
    torch.testing.assert_close(
        norms[:, 1].double(), torch.stack([u.square().sum() for u in updates]), rtol=1e-6, atol=0
    )


def test_shards_with_summed_norms_take_the_step_of_the_whole(backend):
    """What a sharded model does between the phases: cut a tensor in three, add up the norms, apply."""
    whole, shards = tensors([50_000]), tensors([50_000])
    cuts = [slice(0, 7), slice(7, 30_000), slice(30_000, 50_000), slice(50_000, 50_000)]
    norms, apply = lamb(whole, backend=backend)
    apply(norms)
    parts = []
    for cut in cuts:
        lists = {name: [getattr(shards, name)[0][cut]] for name in ("weights", "gradients", "means", "variances")}
        parts.append(lamb(shards._replace(**lists), backend=backend))
    total = sum(norms for norms, _ in parts)
    torch.testing.assert_close(total, norms)
    for _, apply in parts:
        apply(total)
    torch.testing.assert_close(shards.weights[0], whole.weights[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_gradient_is_read_exactly(backend, dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    problem = tensors([2**16], dtype, gradients=[bits.view(dtype)], betas=(0.0, 0.0))
    lamb(problem, backend=backend)
    torch.testing.assert_close(problem.means[0], bits.view(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_rounded_as_torch_rounds_them(backend, dtype):
    """All 16-bit values, halfway between neighbours, a bit to either side, and random bit patterns."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    values = values[values.isfinite()]
    middle = (values[1:].double() + values[:-1].double()).float() / 2
    patterns = torch.randint(-(2**31), 2**31, (50_000,), generator=torch.Generator().manual_seed(1)).int()
    patterns = patterns.view(torch.float32)
    weights = torch.cat([values, middle, middle.nextafter(middle + 1), middle.nextafter(middle - 1), patterns])
    zeros = torch.zeros_like(weights)
    problem = tensors(
        [1], dtype, weights=[weights], means=[zeros], variances=[zeros.clone()], gradients=[zeros.to(dtype)],
        copies=[torch.zeros_like(weights, dtype=dtype)], rates=[0.0], decays=[0.0],
    )  # fmt: skip
    norms, apply = lamb(problem, backend=backend)
    apply(norms)
    torch.testing.assert_close(problem.copies[0], weights.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_bits_are_the_same_in_either_order_of_threads(native):
    results = []
    for descending in (False, True):
        native.set_host_order(descending)
        problem = tensors([40_000, 300])
        norms, apply = lamb(problem, backend="cuda")
        apply(norms)
        results.append([norms, *problem.weights, *problem.means, *problem.variances])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_deepspeed_clips_the_ratio_at_both_ends(backend):
    for size, bound in ((1e-6, 0.01), (1e6, 10.0)):
        weight = torch.full((16,), size)
        problem = tensors([16], weights=[weight.clone()], trust="deepspeed", decays=[0.0])
        norms, apply = lamb(problem, backend=backend)
        apply(norms)
        correction = (1 - 0.98) ** 0.5 / (1 - 0.9)
        update = problem.means[0] / (problem.variances[0].sqrt() + 1e-6)
        wanted = weight - 0.01 * correction * bound * update
        torch.testing.assert_close(problem.weights[0], wanted, rtol=1e-6, atol=1e-9)
