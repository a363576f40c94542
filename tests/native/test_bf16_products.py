# SPDX-License-Identifier: Apache-2.0
"""Products of bf16 towers by every instruction set at hand: exact, accumulated in fp32, alike on any number of
threads.
"""

import pytest
import torch

from clipkit.engine.cpu_backend import products
from clipkit.engine.cpu_backend.products import Bf16Products, Fp32Products, bf16_kernel

SHAPES = [(1, 1, 1), (1, 130, 6), (63, 65, 96), (32, 64, 32), (127, 2, 640), (130, 127, 1152), (512, 96, 600)]
"""(rows, columns, width)"""


@pytest.fixture(params=["amx", "avx512_bf16", "widened"])
def path(request, native):
    if request.param not in (*native.bf16_kernels(), "widened"):
        pytest.skip(f"this processor or compiler has no {request.param}")
    return request.param


def by(path, x, y):
    return Fp32Products(x.float(), y.float()) if path == "widened" else Bf16Products(x, y, path)


def tower(rows, width, seed):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).bfloat16()


def everything(x):
    return slice(0, len(x))


def all_three(made, x, y, weights):
    """The tile, and both sums begun at one, so that a product that overwrites is seen."""
    rows, columns = everything(x), everything(y)
    tile, along_rows, along_columns = torch.empty(len(x), len(y)), torch.ones(x.shape), torch.ones(y.shape)
    made.tile(rows, columns, tile)
    made.add_to_rows(weights, rows, columns, along_rows)
    made.add_to_columns(weights, rows, columns, along_columns)
    return tile, along_rows, along_columns


def assert_sums(actual, left, right, *, start=0.0, weight_error=0.0):
    """Against float64, within the worst rounding of an fp32 sum, and of bf16 weights where they are rounded."""
    exact, size = left.double() @ right.double() + start, left.double().abs() @ right.double().abs() + start
    bound = (left.shape[1] * 2**-24 + 2**-23 + weight_error) * size
    assert ((actual.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_the_three_products_equal_float64(path, rows, columns, width):
    x, y, weights = tower(rows, width, 0), tower(columns, width, 1), tower(rows, columns, 2).float()
    tile, along_rows, along_columns = all_three(by(path, x, y), x, y, weights)
    assert_sums(tile, x, y.T)
    assert_sums(along_rows, weights, y, start=1.0)
    assert_sums(along_columns, weights.T, x, start=1.0)


def test_products_are_not_rounded_to_bf16(path):
    """1 + 2^-16 is the exact product of two bf16 numbers' sum; in bf16 it is 1."""
    x, y = torch.tensor([[1.0, 2**-8]]).bfloat16(), torch.tensor([[1.0, 2**-8]]).bfloat16()
    tile = torch.empty(1, 1)
    by(path, x, y).tile(slice(0, 1), slice(0, 1), tile)
    assert tile.item() == 1 + 2**-16


def test_weights_are_rounded_to_the_nearest_even_and_no_further(path):
    if path == "widened":
        pytest.skip("fp32 weights stay fp32")
    weights = torch.cat([torch.randn(64, 96), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8]).repeat(64, 16)], dim=1)
    x, y = torch.eye(64).bfloat16(), torch.eye(128).bfloat16()
    wide = torch.zeros(64, 128)
    Bf16Products(tower(64, 128, 0), y, path).add_to_rows(weights, everything(x), everything(y), wide)
    assert torch.equal(wide, weights.bfloat16().float())
    wide = torch.zeros(128, 64)
    Bf16Products(x, tower(128, 64, 0), path).add_to_columns(weights, everything(x), everything(y), wide)
    assert torch.equal(wide, weights.T.bfloat16().float())


def test_parts_of_a_form_equal_the_whole(path):
    """Tiles that begin anywhere on the panels' grid, ragged at the end."""
    x, y, weights = tower(200, 70, 0), tower(300, 70, 1), tower(200, 300, 2).float()
    made = by(path, x, y)
    along_rows, along_columns = torch.zeros(200, 70), torch.zeros(300, 70)
    for rows in (slice(0, 96), slice(96, 200)):
        for columns in (slice(0, 160), slice(160, 300)):
            tile = torch.empty(rows.stop - rows.start, columns.stop - columns.start)
            made.tile(rows, columns, tile)
            assert_sums(tile, x[rows], y[columns].T)
            made.add_to_rows(weights[rows, columns], rows, columns, along_rows)
            made.add_to_columns(weights[rows, columns], rows, columns, along_columns)
    assert_sums(along_rows, weights, y)
    assert_sums(along_columns, weights.T, x)


def test_any_strides_and_alignment(path):
    wide, tall = tower(50, 141, 0), tower(47, 60, 1)
    views = {
        "a window": wide[3:, 5:75],
        "every second row": wide[::2, 1:71],
        "transposed": tall.T,
        "one row again and again": wide[:1].expand(33, -1),
    }
    for name, x in views.items():
        y = tower(40, x.shape[1], 2)
        weights = torch.randn(len(x), 45, generator=torch.Generator().manual_seed(3))[:, 5:].bfloat16().float()
        tile, along_rows, along_columns = all_three(by(path, x, y), x, y, weights)
        other = all_three(by(path, x.contiguous(), y), x, y, weights)
        assert all(torch.equal(a, b) for a, b in zip((tile, along_rows, along_columns), other, strict=True)), name


def test_nothing_beside_the_result_is_touched(path):
    x, y = tower(40, 33, 0), tower(50, 33, 1)
    around = torch.full((42, 60), 7.0)
    by(path, x, y).tile(everything(x), everything(y), around[:40, :50])
    assert (around[:, 50:] == 7.0).all()
    assert (around[40:] == 7.0).all()
    around = torch.full((42, 40), 7.0)
    by(path, x, y).add_to_rows(torch.ones(40, 50), everything(x), everything(y), around[:, :33])
    assert (around[:, 33:] == 7.0).all()
    assert (around[40:] == 7.0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_none_reaches_its_row_and_column_and_no_other(path, value):
    x, y, weights = tower(40, 50, 0), tower(36, 50, 1), tower(40, 36, 2).float()
    x[7, 9] = value
    tile, _, along_columns = all_three(by(path, x, y), x, y, weights)
    assert (~tile.isfinite()).any(1).nonzero().flatten().tolist() == [7]
    assert (~tile.isfinite())[7].all()
    assert (~along_columns.isfinite()).any(0).nonzero().flatten().tolist() == [9]
    x[7, 9], weights[3, 5] = 0.0, value
    _, along_rows, along_columns = all_three(by(path, x, y), x, y, weights)
    assert (~along_rows.isfinite()).any(1).nonzero().flatten().tolist() == [3]
    assert (~along_columns.isfinite()).any(1).nonzero().flatten().tolist() == [5]


def test_one_and_more_threads_give_the_same_bits(path):
    if path == "widened":
        pytest.skip("torch's BLAS decides")
    x, y, weights = tower(300, 200, 0), tower(260, 200, 1), tower(300, 260, 2).float()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 64):
            torch.set_num_threads(count)
            results.append(all_three(Bf16Products(x, y, path), x, y, weights))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


def test_empty_parts_do_nothing(path):
    x, y = tower(0, 8, 0), tower(5, 8, 1)
    tile, along_rows, along_columns = all_three(by(path, x, y), x, y, torch.empty(0, 5))
    assert tile.numel() == along_rows.numel() == 0
    assert (along_columns == 1.0).all()


def test_the_fastest_path_at_hand_is_chosen_for_bf16_only(native):
    kernels = native.bf16_kernels()
    assert bf16_kernel(torch.bfloat16) == (kernels[0] if kernels else None)
    assert bf16_kernel(torch.float16) is bf16_kernel(torch.float32) is None
    chosen = products.products_of(tower(2, 3, 0), tower(4, 3, 1))
    assert isinstance(chosen, Bf16Products if kernels else Fp32Products)


def test_an_unknown_kernel_and_bad_pointers_raise(native):
    with pytest.raises(ValueError, match="kernel: got 'fast'"):
        native.bf16_tile("fast", 0, 0, 0, 0, 0, 0, 0, 0, 1)
    for kernel in native.bf16_kernels():
        with pytest.raises(ValueError, match="x: got a null pointer"):
            native.bf16_tile(kernel, 0, 8, 2, 8, 0, 2, 0, 2, 1)
        with pytest.raises(ValueError, match="out: got a stride"):
            native.bf16_tile(kernel, 64, 8, 2, 8, 64, 4, 64, 2, 1)
