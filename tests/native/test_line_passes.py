# SPDX-License-Identifier: Apache-2.0
"""The passes over lines, in every instruction set of this machine: each fused operation no further from float64 than
plain torch, at widths below, at and beside a vector's.
"""

import pytest
import torch

from clipkit.engine import torch_backend
from clipkit.engine.cpu_backend import lines, norms, rotation
from tests.encoders import fused_cases

close = torch.testing.assert_close
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("case", fused_cases.CASES, ids=lambda case: case.name)
def test_every_operation(passes, case, dtype):
    for mine, allowed in fused_cases.errors(case.name, dtype, "cpu"):
        assert mine <= allowed


@DTYPES
@pytest.mark.parametrize("hidden, width", [(1, 1), (3, 16), (15, 15), (16, 17), (17, 40), (33, 33)])
def test_ends_of_lines(passes, hidden, width, dtype):
    """NaN lies beside every line: what is read past its end shows."""
    generator = torch.Generator().manual_seed(0)
    buffer = torch.full((3, 66, 48), torch.nan, dtype=dtype)
    buffer[:, :, :width] = torch.randn(3, 66, width, generator=generator).to(dtype)
    gate, value, grad = buffer[:, :, :width]
    vectors = torch.full((2, 48), torch.nan)
    vectors[:, :hidden] = torch.randn(2, hidden, generator=generator)
    weight, bias = vectors[:, :hidden]
    results = norms.swiglu_norm(gate, value, weight, bias, 1e-2)
    gradients = norms.swiglu_norm_gradients(grad, gate, value, weight, *results[1:])
    wide = [tensor.double() for tensor in (gate, value, weight, bias)]
    want = torch_backend.swiglu_norm(*wide, 1e-2)
    want_gradients = torch_backend.swiglu_norm_gradients(grad.double(), *wide[:3], *want[1:])
    step = 1e-5 if dtype == torch.float32 else 5e-3
    for mine, exact in zip((*results, *gradients), (*want, *want_gradients), strict=True):
        close(mine.double(), exact, rtol=step, atol=step * float(exact.abs().max()) + 1e-5)


def test_bf16_is_rounded_to_the_nearest_even(passes):
    """Ties, the largest number, infinities and NaN, as torch rounds them."""
    ones, zeros = torch.ones(8), torch.zeros(8)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.0e38, 1e-40, 256.5, 2.0**-126, 0.1])
    x, branch = ties.view(1, 8), torch.zeros(1, 8)
    # fp32 x with a bf16 branch: the norm is bf16; its values are those of one row scaled to themselves
    post = norms.add_post_norm(x.bfloat16(), branch.bfloat16(), ones, zeros, 1e-6)[0]
    assert torch.equal(post, x.bfloat16())
    normed = norms.add_norm(x[:, :1].expand(1, 8).contiguous(), branch.bfloat16(), ones, ties, 1e-6)[1]
    assert torch.equal(normed.view(torch.int16), ties.bfloat16().view(1, 8).view(torch.int16))
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0, 1.0, 1.0, 1.0, 1.0])
    normed = norms.add_norm(torch.ones(1, 8), branch.bfloat16(), ones, odd, 1e-6)[1]
    assert torch.equal(normed.nan_to_num(7.0), odd.bfloat16().view(1, 8).nan_to_num(7.0))


def test_tokens_are_turned_from_any_strides(passes):
    tokens = torch.randn(2, 3, 5, 9, 40)[:, 1, :, ::2, 3:35]
    angle = torch.rand(4, 16)
    turned, _ = rotation.rotate(tokens, tokens, angle.cos(), angle.sin(), None, inverse=False)
    close(turned, fused_cases.rotated(tokens, angle.cos(), angle.sin(), None), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 64, 65, 4096, 4097, 300_000])
def test_blocks_cover_every_line_once_and_are_few(count):
    blocks = lines.blocks_of(count)
    assert [line for block in blocks for line in range(block.start, block.stop)] == list(range(count))
    assert len(blocks) <= 64


def test_an_error_in_a_thread_is_the_callers(native):
    def fail(block, some):
        raise RuntimeError("here")

    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with pytest.raises(RuntimeError, match="here"):
                lines.over_blocks(lines.blocks_of(500), fail)
    finally:
        torch.set_num_threads(before)


def test_null_addresses_are_refused(native):
    norm = native.Norm(1, 1, 4, 1e-6, 1, 1)
    with pytest.raises(ValueError, match="value: got a null pointer"):
        native.swiglu_norm(norm, (1, 4, True), (0, 4, True), (1, 4, True), 4, 0, 0)
