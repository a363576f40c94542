# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's sweeps with gradients on a card: the interpreter's cases, bf16 as well, at sizes and widths of
real batches; equal bits twice, no wait for the device, bounded memory.
"""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import kernel_cases
from tests.interpreter import sweep_cases as cases

MAKERS = {
    "exponential_products": cases.exponential,
    "sigmoid_sweep": cases.sigmoid,
    "labelled_sigmoid_sweep": cases.labelled,
    "softmax_sweep": cases.softmax,
}
# (N, M, d): whole tiles; ragged rows, columns and width; a width that is no multiple of 8, nor of a load.
SHAPES = [(4096, 4096, 512), (4000, 4099, 768), (777, 1000, 640), (300, 2049, 666), (1, 1, 6), (130, 131, 7)]


@pytest.fixture(scope="module")
def backend():
    pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")
    from clipkit.engine import triton_backend

    return triton_backend


def check(sweep, arguments, dtype):
    ours, torchs = (
        cases.relative_errors(sweep, arguments, backend=name, device="cuda") for name in ("triton", "torch")
    )
    for mine, peer in zip(ours, torchs, strict=True):
        assert (mine is None) == (peer is None)
        assert mine is None or mine <= 2 * peer + cases.TOLERANCE[dtype]


def on_card(arguments):
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


@pytest.mark.parametrize("dtype", cases.TOLERANCE, ids=str)
@pytest.mark.parametrize("rows, columns, width", SHAPES)
@pytest.mark.parametrize("sweep", MAKERS)
def test_sweeps_equal_float64(backend, sweep, rows, columns, width, dtype):
    check(sweep, MAKERS[sweep]("unit", rows, columns, width, dtype), dtype)


@pytest.mark.parametrize("dtype", cases.TOLERANCE, ids=str)
@pytest.mark.parametrize("data", cases.DATA)
@pytest.mark.parametrize("sweep", MAKERS)
def test_sweeps_of_every_kind_of_data(backend, sweep, data, dtype):
    check(sweep, MAKERS[sweep](data, 700, 900, 512, dtype), dtype)


@pytest.mark.parametrize("scaled", [False, True], ids=["one scale", "scales"])
@pytest.mark.parametrize("terms", ["rows", "columns", "both"])
def test_one_direction_and_a_scale_for_each_line(backend, terms, scaled):
    for dtype in cases.TOLERANCE:
        arguments = cases.exponential("cone", 700, 900, 512, dtype, terms=terms, scaled=scaled)
        check("exponential_products", arguments, dtype)


@pytest.mark.parametrize("dtype", cases.TOLERANCE, ids=str)
@pytest.mark.parametrize("sweep", MAKERS)
def test_two_runs_give_the_same_bits(backend, sweep, dtype):
    arguments = on_card(MAKERS[sweep]("unit", 2000, 4096, 512, dtype))
    first, second = (getattr(backend, sweep)(**arguments) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("sweep", MAKERS)
def test_nothing_waits_for_the_device(backend, sweep):
    arguments = on_card(MAKERS[sweep]("unit", 300, 400, 64, torch.float16))
    getattr(backend, sweep)(**arguments)  # compilation and the library's lazy initialisation
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        getattr(backend, sweep)(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sweep", ["exponential_products", "sigmoid_sweep"])
def test_memory_is_the_results_and_one_workspace(backend, sweep):
    """No N x N anything: 32768 pairs would take 2 GiB in 16 bit."""
    rows, width = 32768, 64
    x, y = (kernel_cases.unit_features(rows, width, torch.bfloat16, seed).cuda() for seed in (0, 1))
    vector = torch.full((rows,), 20.0, device="cuda")
    extra = {
        "exponential_products": {
            "row_offset": vector, "column_offset": vector, "diagonal_weight": vector, "want_x": True, "want_y": True,
        },
        "sigmoid_sweep": {"bias": torch.tensor(-10.0, device="cuda"), "want_gradients": True},
    }[sweep]  # fmt: skip
    arguments = {"x": x, "y": y, "scale": torch.tensor(10.0, device="cuda"), "diagonal": 0, **extra}
    small = {
        name: value[:256] if torch.is_tensor(value) and value.dim() else value for name, value in arguments.items()
    }
    getattr(backend, sweep)(**small)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    getattr(backend, sweep)(**arguments)
    results = 2 * rows * width * 4
    assert torch.cuda.max_memory_allocated() - before < (256 << 20) + 2 * results + (32 << 20)


def test_towers_of_more_than_two_billion_elements(backend):
    """The last rows of a tower of 4.5 GB get the statistics and gradients that they get alone."""
    rows, width = 1_100_000, 2048
    x = torch.zeros(rows, width, dtype=torch.float16, device="cuda")
    y = kernel_cases.unit_features(96, width, torch.float16, 1).cuda()
    x[-130:] = kernel_cases.unit_features(130, width, torch.float16, 0).cuda()
    scale = torch.tensor(30.0, device="cuda")
    whole, _ = backend.log_sum_exps(x, y, scale, diagonal=None)
    alone, _ = backend.log_sum_exps(x[-130:], y, scale, diagonal=None)
    torch.testing.assert_close(whole[-130:], alone, rtol=1e-6, atol=1e-5)
    weight = torch.zeros(rows, device="cuda")
    products = [
        backend.exponential_products(
            x[part], y, scale, row_offset=lse, column_offset=None, diagonal=96, diagonal_weight=weight[part],
            want_x=True, want_y=False,
        )[0]
        for part, lse in ((slice(None), whole), (slice(-130, None), alone))
    ]  # fmt: skip
    torch.testing.assert_close(products[0][-130:], products[1], rtol=1e-3, atol=1e-4)


def test_fp32_is_exact_unless_torch_may_use_tf32(backend):
    arguments = cases.exponential("unit", 700, 700, 512, torch.float32)
    setting = torch.backends.cuda.matmul.fp32_precision
    worst = {}
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = precision
            errors = cases.relative_errors("exponential_products", arguments, backend="triton", device="cuda")
            worst[precision] = max(errors)
    finally:
        torch.backends.cuda.matmul.fp32_precision = setting
    assert worst["ieee"] < 5e-6 < worst["tf32"] < 2e-2
