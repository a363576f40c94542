# SPDX-License-Identifier: Apache-2.0
"""LAMB's three rules against float64 and known answers: plain torch, the CPU's passes, the CUDA kernels' bodies."""

import copy

import pytest
import torch
from torch import nn

from clipkit.optim import Lamb
from tests.optim.lamb_reference import ReferenceLamb

BACKENDS = ["torch", "cpu", "cuda"]
RULES = ["nvlamb", "paper", "deepspeed"]
# One element, nothing at all, a scalar, ragged ends of threads and chunks (16384 elements), several chunks.
SHAPES = [(1,), (0, 5), (), (7, 37), (16384,), (16385,), (3, 20000)]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    if request.param != "torch":
        pytest.importorskip("clipkit._native", reason="clipkit was installed without its compiled part")
    if request.param == "cuda":
        monkeypatch.setenv("CLIPKIT_CUDA_ON_HOST", "1")
    return request.param


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(tensors, seed, factor=1.0):
    generator = torch.Generator().manual_seed(1000 + seed)
    for tensor in tensors:
        tensor.grad = (torch.randn(tensor.shape, generator=generator) * factor).to(tensor.dtype)


OPTIONS = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6}


@pytest.mark.parametrize(
    "trust, first, second",
    [
        ("nvlamb", (2.95895474, 4.02855322), (2.90907291, 4.03175772)),
        ("paper", (2.95895474, 4.02855322), (2.90907291, 4.03175772)),
        ("deepspeed", (2.93914296, 4.03600585), (2.88692744, 4.03883652)),
    ],
)
def test_known_answers(backend, trust, first, second):
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lamb([weight], **OPTIONS, weight_decay=0.05, trust=trust, backend=backend)
    for gradient, wanted in (((0.3, -0.4), first), ((0.1, 0.2), second)):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        torch.testing.assert_close(weight.data, torch.tensor(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("trust", RULES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_ten_steps_equal_float64(backend, trust, weight_decay):
    tensors = parameters()
    tensors[3].data.zero_()  # a norm of zero
    options = {**OPTIONS, "weight_decay": weight_decay, "trust": trust}
    optimizer, reference = Lamb(tensors, **options, backend=backend), ReferenceLamb(tensors, **options)
    for step in range(10):
        give_gradients(tensors, step)
        reference.step([tensor.grad for tensor in tensors])
        optimizer.step()
    for tensor, wanted in zip(tensors, reference.weights, strict=True):
        torch.testing.assert_close(tensor.data.double(), wanted, rtol=2e-5, atol=2e-6)


def test_float64_parameters_are_updated_in_float64():
    tensors = parameters(dtype=torch.float64)
    options = {**OPTIONS, "weight_decay": 0.05, "trust": "nvlamb"}
    optimizer, reference = Lamb(tensors, **options), ReferenceLamb(tensors, **options)
    for step in range(3):
        give_gradients(tensors, step)
        reference.step([tensor.grad for tensor in tensors])
        optimizer.step()
    for tensor, wanted in zip(tensors, reference.weights, strict=True):
        torch.testing.assert_close(tensor.data, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_parameters_follow_fp32_masters(backend, dtype):
    """The masters take steps that 16 bits could not hold, and the parameters are the masters rounded."""
    tensors = parameters(dtype=dtype)
    options = {**OPTIONS, "lr": 1e-4, "weight_decay": 0.05, "trust": "paper"}
    optimizer, reference = Lamb(tensors, **options, backend=backend), ReferenceLamb(tensors, **options)
    for step in range(5):
        give_gradients(tensors, step)
        reference.step([tensor.grad for tensor in tensors])
        optimizer.step()
    for tensor, wanted in zip(tensors, reference.weights, strict=True):
        master = optimizer.state[tensor]["master"]
        torch.testing.assert_close(master.double(), wanted, rtol=2e-5, atol=2e-6)
        assert torch.equal(tensor.data, master.to(dtype))


def test_groups_keep_their_own_rate_and_decay(backend):
    tensors = parameters([(40, 5), (40,)])
    groups = [
        {"params": tensors[:1], "lr": 0.02, "weight_decay": 0.1},
        {"params": tensors[1:], "lr": 0.001, "weight_decay": 0.0},
    ]
    references = [
        ReferenceLamb(
            [tensor], lr=group["lr"], betas=(0.9, 0.98), eps=1e-6, weight_decay=group["weight_decay"], trust="nvlamb"
        )
        for tensor, group in zip(tensors, groups, strict=True)
    ]
    optimizer = Lamb(groups, betas=(0.9, 0.98), eps=1e-6, backend=backend)
    for step in range(3):
        give_gradients(tensors, step)
        for tensor, reference in zip(tensors, references, strict=True):
            reference.step([tensor.grad])
        optimizer.step()
    for tensor, reference in zip(tensors, references, strict=True):
        torch.testing.assert_close(tensor.data.double(), reference.weights[0], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("trust", RULES)
def test_a_rate_that_is_a_tensor_is_the_number_in_it(backend, trust):
    """Beside tensors with a number for a rate, as the temperature is beside the weights."""
    rate = torch.tensor(0.003)
    results = []
    for lr in (rate, rate.item()):
        tensors = parameters([(40, 5), (), (7,)])
        groups = [{"params": tensors[:1]}, {"params": tensors[1:2], "lr": lr}, {"params": tensors[2:]}]
        optimizer = Lamb(groups, **OPTIONS, weight_decay=0.05, trust=trust, backend=backend)
        for step in range(3):
            give_gradients(tensors, step)
            optimizer.step()
        results.append(tensors)
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-7, atol=0)


def test_a_closure_is_evaluated_with_gradients_and_its_value_comes_back():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lamb([weight], lr=0.1)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 25.0
    assert (weight < torch.tensor([3.0, 4.0])).all()


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_an_overflowed_step_changes_nothing_and_is_not_counted(backend, bad):
    """The scaler's verdict by attribute, as torch.amp.GradScaler hands it over; also before the very first step."""
    tensors = parameters([(30, 3), (5,)])
    optimizer = Lamb(tensors, **OPTIONS, weight_decay=0.05, backend=backend)
    twins = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    twin = Lamb(twins, **OPTIONS, weight_decay=0.05, backend=backend)
    for step, overflowed in enumerate((True, False, True, False)):
        give_gradients(tensors, step, factor=1024.0)
        give_gradients(twins, step)
        if overflowed:
            tensors[0].grad[3, 1] = bad
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(float(overflowed)), torch.tensor(1024.0)
        optimizer.step()
        if not overflowed:
            twin.step()
        for tensor, other in zip(tensors, twins, strict=True):
            assert torch.equal(tensor, other)
            for name, value in twin.state[other].items():
                assert torch.equal(optimizer.state[tensor][name], value), name


def test_the_grad_scaler_of_torch_works_with_it(backend):
    tensors = parameters([(6, 4)])
    optimizer = Lamb(tensors, lr=0.1, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before = tensors[0].detach().clone()
    scaler.scale((tensors[0] * torch.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(tensors[0], before)
    assert scaler.get_scale() == 8.0
    tensors[0].grad = None
    scaler.scale((tensors[0] ** 2).sum()).backward()
    scaler.step(optimizer)
    assert not torch.equal(tensors[0], before)
    assert tensors[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_goes_on_with_the_same_bits(backend, dtype):
    tensors = parameters([(30, 3), (5,)], dtype)
    optimizer = Lamb(tensors, **OPTIONS, weight_decay=0.05, backend=backend)
    give_gradients(tensors, 0)
    optimizer.step()
    twins = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    twin = Lamb(twins, **OPTIONS, weight_decay=0.05, backend=backend)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, which in ((tensors, optimizer), (twins, twin)):
        give_gradients(each, 1)
        which.step()
    for tensor, other in zip(tensors, twins, strict=True):
        assert torch.equal(tensor, other)
        for name, value in optimizer.state[tensor].items():
            assert torch.equal(twin.state[other][name], value)
            assert twin.state[other][name].dtype == value.dtype


def test_parameters_without_gradient_and_late_ones(backend):
    """Each tensor counts its own steps, so one that joins late gets the bias correction of its first."""
    early, late, never = parameters([(8,), (8,), (8,)])
    optimizer = Lamb([early, late, never], **OPTIONS, weight_decay=0.05, backend=backend)
    untouched = never.detach().clone()
    reference = ReferenceLamb([late], **OPTIONS, weight_decay=0.05, trust="nvlamb")
    give_gradients([early], 0)
    optimizer.step()
    give_gradients([early, late], 1)
    reference.step([late.grad])
    optimizer.step()
    torch.testing.assert_close(late.data.double(), reference.weights[0], rtol=2e-5, atol=2e-6)
    assert torch.equal(never, untouched)
    assert not optimizer.state[never]


@pytest.mark.parametrize("trust", RULES)
def test_nan_gradients_show(backend, trust):
    weight = nn.Parameter(torch.ones(4))
    optimizer = Lamb([weight], **OPTIONS, weight_decay=0.05, trust=trust, backend=backend)
    weight.grad = torch.tensor([0.0, torch.nan, 1.0, 1.0])
    optimizer.step()
    assert weight.isnan().any()


def test_all_backends_take_the_same_steps(monkeypatch):
    pytest.importorskip("clipkit._native", reason="clipkit was installed without its compiled part")
    monkeypatch.setenv("CLIPKIT_CUDA_ON_HOST", "1")
    results = []
    for backend in BACKENDS:
        tensors = parameters()
        optimizer = Lamb(tensors, **OPTIONS, weight_decay=0.05, backend=backend)
        for step in range(3):
            give_gradients(tensors, step)
            optimizer.step()
        results.append(tensors)
    for theirs, *others in zip(*results, strict=True):
        for ours in others:
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "option, complaint",
    [
        ({"lr": -1.0}, "lr: got -1.0"),
        ({"betas": (0.9, 1.0)}, "betas: got"),
        ({"eps": -1e-6}, "eps: got"),
        ({"weight_decay": -0.1}, "weight_decay: got"),
        ({"trust": "adam"}, "trust: got 'adam'; want one of"),
    ],
)
def test_options_out_of_range_are_refused(option, complaint):
    with pytest.raises(ValueError, match=complaint):
        Lamb(parameters([(2,)]), **option)


def test_a_complex_parameter_is_refused():
    with pytest.raises(TypeError, match=r"params: got torch\.complex64"):
        Lamb([nn.Parameter(torch.ones(3, dtype=torch.complex64))])


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.T.contiguous().T, lambda x: x.repeat(2, 2)[::2, ::2]])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_how_weights_and_gradients_lie_in_memory_does_not_matter_on_the_cpu(layout, backend):
    start, gradient = torch.randn(6, 4), torch.randn(6, 4)
    reference = ReferenceLamb([layout(start)], **OPTIONS, weight_decay=0.05, trust="nvlamb")
    reference.step([layout(gradient)])
    for other in (lambda x: x, lambda x: x.T.contiguous().T):
        weight = nn.Parameter(layout(start.clone()))
        weight.grad = other(layout(gradient))
        Lamb([weight], **OPTIONS, weight_decay=0.05, backend=backend).step()
        torch.testing.assert_close(weight.data.double(), reference.weights[0], rtol=2e-5, atol=2e-6)


def test_the_cuda_backend_refuses_what_it_cannot_serve(monkeypatch):
    pytest.importorskip("clipkit._native", reason="clipkit was installed without its compiled part")
    monkeypatch.setenv("CLIPKIT_CUDA_ON_HOST", "1")
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match="fp32"):
        Lamb([weight], backend="cuda").step()
    weight = nn.Parameter(torch.ones(3, 4).T)
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match="contiguous"):
        Lamb([weight], backend="cuda").step()
