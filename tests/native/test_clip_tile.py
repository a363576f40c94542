# SPDX-License-Identifier: Apache-2.0
"""The C++ epilogue of the CLIP loss on one tile, against float64 on the same fp32 products."""

import pytest
import torch

SHAPES = [(1, 1), (1, 130), (63, 65), (127, 2), (128, 256), (130, 127)]


def random_tile(rows, columns, *, padding=0, spread=1.0, seed=0):
    """Products in a buffer whose rows are longer than the tile; what lies beside the tile is NaN."""
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.full((rows, columns + padding), float("nan"))
    buffer[:, :columns] = torch.randn(rows, columns, generator=generator) * spread
    return buffer


def tile_log_sums(native, buffer, columns, scale):
    rows = buffer.shape[0]
    row_offset, row_sum = torch.empty(rows), torch.empty(rows)
    column_offset, column_sum = torch.empty(columns), torch.empty(columns)
    outputs = [tensor.data_ptr() for tensor in (row_offset, row_sum, column_offset, column_sum)]
    native.clip_tile_statistics(buffer.data_ptr(), buffer.stride(0), rows, columns, scale, *outputs)
    return row_offset.double() + row_sum.double().log(), column_offset.double() + column_sum.double().log()


def exact_logits(buffer, columns, scale):
    return buffer[:, :columns].double() * float(torch.tensor(scale))


@pytest.mark.parametrize("rows, columns", SHAPES)
@pytest.mark.parametrize("padding", [0, 5])
def test_row_and_column_statistics_equal_float64(native, rows, columns, padding):
    buffer = random_tile(rows, columns, padding=padding)
    row, column = tile_log_sums(native, buffer, columns, 14.3)
    logits = exact_logits(buffer, columns, 14.3)
    torch.testing.assert_close(row, logits.logsumexp(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(column, logits.logsumexp(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [100.0, -100.0, 1e4])
def test_rows_and_columns_far_below_the_tile_are_not_lost(native, scale):
    buffer = random_tile(40, 70, spread=0.05)
    buffer[3] -= 2.0  # with scale 100: 200 nats under the tile's largest logit, where exp is zero in fp32
    buffer[:, 11] -= 3.0
    buffer[17] += 2.0
    row, column = tile_log_sums(native, buffer, 70, scale)
    logits = exact_logits(buffer, 70, scale)
    bound = 4e-7 * float(logits.abs().max())  # the fp32 rounding of the logits themselves
    torch.testing.assert_close(row, logits.logsumexp(1), rtol=0, atol=bound)
    torch.testing.assert_close(column, logits.logsumexp(0), rtol=0, atol=bound)


def test_a_nan_product_reaches_its_row_and_column(native):
    buffer = random_tile(5, 7)
    buffer[2, 4] = float("nan")
    row, column = tile_log_sums(native, buffer, 7, 1.0)
    assert row.isnan().nonzero().flatten().tolist() == [2]
    assert column.isnan().nonzero().flatten().tolist() == [4]


def test_masked_products_contribute_nothing(native):
    buffer = random_tile(6, 9)
    buffer[2, :] = -torch.inf
    buffer[:, 5] = -torch.inf
    buffer[0, 1] = -torch.inf
    row, column = tile_log_sums(native, buffer, 9, 20.0)
    logits = exact_logits(buffer, 9, 20.0)
    torch.testing.assert_close(row, logits.logsumexp(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(column, logits.logsumexp(0), rtol=0, atol=1e-5)
    row, column = tile_log_sums(native, torch.full((2, 3), -torch.inf), 3, 20.0)
    assert (row == -torch.inf).all()
    assert (column == -torch.inf).all()


def test_an_empty_tile_has_no_statistics(native):
    row, column = tile_log_sums(native, torch.empty(0, 3), 3, 1.0)
    assert row.numel() == 0
    assert torch.equal(column, torch.full((3,), -torch.inf, dtype=torch.float64))


@pytest.mark.parametrize("rows, columns", SHAPES)
@pytest.mark.parametrize("diagonal", [0, -3, 40, 10_000])
def test_gradient_tile_equals_float64(native, rows, columns, diagonal):
    scale = 30.0
    buffer = random_tile(rows, columns, padding=3, spread=0.3)
    logits = exact_logits(buffer, columns, scale)
    row_lse, column_lse = logits.logsumexp(1) + 0.5, logits.logsumexp(0) + 0.25  # as if other tiles had contributed
    expected = (logits - row_lse[:, None]).exp() + (logits - column_lse).exp()
    pairs = torch.arange(columns) == torch.arange(rows)[:, None] + diagonal
    expected = expected - 2.0 * pairs
    row32, column32 = row_lse.float(), column_lse.float()
    native.clip_tile_gradient(
        buffer.data_ptr(), buffer.stride(0), rows, columns, scale, row32.data_ptr(), column32.data_ptr(), diagonal
    )
    torch.testing.assert_close(buffer[:, :columns].double(), expected, rtol=0, atol=1e-5)
    assert buffer[:, columns:].isnan().all()


def test_gradient_of_a_learned_pair_keeps_its_digits(native):
    """1 - P of some 1e-9 is not lost to the rounding of P."""
    products, row_lse, column_lse = torch.tensor([[1.0]]), torch.tensor([1.0 + 2**-23]), torch.tensor([1.0])
    native.clip_tile_gradient(products.data_ptr(), 1, 1, 1, 1.0, row_lse.data_ptr(), column_lse.data_ptr(), 0)
    assert products.item() == pytest.approx(-(2**-23), rel=1e-6)


def test_same_inputs_give_the_same_bits(native):
    buffer = random_tile(100, 200)
    first, second = tile_log_sums(native, buffer, 200, 50.0), tile_log_sums(native, buffer, 200, 50.0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_bad_sizes_and_pointers_raise(native):
    tile = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="stride"):
        native.clip_tile_gradient(tile.data_ptr(), 2, 2, 3, 1.0, tile.data_ptr(), tile.data_ptr(), 0)
    with pytest.raises(ValueError, match="row_lse"):
        native.clip_tile_gradient(tile.data_ptr(), 3, 2, 3, 1.0, 0, tile.data_ptr(), 0)
    with pytest.raises(ValueError, match="rows, columns"):
        native.clip_tile_gradient(tile.data_ptr(), 3, -1, 3, 1.0, tile.data_ptr(), tile.data_ptr(), 0)
