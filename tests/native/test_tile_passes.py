# SPDX-License-Identifier: Apache-2.0
"""Every compiled pass over a tile, in every instruction set of this machine, against float64 on the same products."""

import pytest
import torch

from tests.native.tiles import SHAPES, exact_logits, random_tile

close = torch.testing.assert_close
everywhere = pytest.mark.parametrize("rows, columns", SHAPES)


def is_positive(positive, first, columns):
    return torch.arange(columns) == positive[:, None] - first


@everywhere
@pytest.mark.parametrize("padding", [0, 5])
def test_row_and_column_statistics(passes, rows, columns, padding):
    buffer = random_tile(rows, columns, padding=padding)
    row, column, _ = passes.log_sums(buffer, columns, 14.3)
    logits = exact_logits(buffer, columns, 14.3)
    close(row, logits.logsumexp(1), rtol=0, atol=1e-5)
    close(column, logits.logsumexp(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("first", [0, 7, -40])
def test_positives_are_left_out_and_their_logits_returned(passes, scale, first):
    buffer = random_tile(30, 50)
    positive = torch.arange(30) * 2 + 1
    out = is_positive(positive, first, 50)
    logits = exact_logits(buffer, 50, scale)
    row, column, found = passes.log_sums(buffer, 50, scale, positive=positive, first=first)
    masked = logits.masked_fill(out, -torch.inf)
    close(row, masked.logsumexp(1), rtol=0, atol=1e-5)
    close(column, masked.logsumexp(0), rtol=0, atol=1e-5)
    inside = out.any(1)
    close(found[inside].double(), logits[out], rtol=1e-6, atol=0)
    assert found[~inside].isnan().all()


def test_tiles_merge_into_running_sums(passes):
    buffer = random_tile(24, 120, spread=40.0)
    left, right = buffer[:, :70].contiguous(), buffer[:, 70:].contiguous()
    running = [torch.full((24,), -torch.inf), torch.zeros(24)]
    for part in (left, right):
        width = part.shape[1]
        down = [torch.full((width,), -torch.inf), torch.zeros(width)]
        row, _, _ = passes.log_sums(part, width, 2.0, running=[*running, *down])
    close(row, exact_logits(buffer, 120, 2.0).logsumexp(1), rtol=0, atol=4e-5)


@pytest.mark.parametrize("scale", [100.0, -100.0, 1e4])
def test_rows_and_columns_far_below_the_others_are_not_lost(passes, scale):
    buffer = random_tile(41, 70, spread=0.05)
    buffer[3] -= 2.0  # with scale 100: 200 nats under the tile's largest logit, where exp is zero in fp32
    buffer[:, 11] -= 3.0
    buffer[:, 69] -= 3.0
    buffer[17] += 2.0
    row, column, _ = passes.log_sums(buffer, 70, scale)
    logits = exact_logits(buffer, 70, scale)
    bound = 4e-7 * float(logits.abs().max())  # the fp32 rounding of the logits themselves
    close(row, logits.logsumexp(1), rtol=0, atol=bound)
    close(column, logits.logsumexp(0), rtol=0, atol=bound)


def test_rows_that_rise_steadily_keep_every_column(passes):
    """The column offset moves up with every block of rows; what was summed before must shrink with it."""
    buffer = random_tile(64, 33, spread=0.5) + torch.arange(64)[:, None] * 0.3
    for tile in (buffer, buffer.flip(0).contiguous()):
        row, column, _ = passes.log_sums(tile.clone(), 33, 20.0)
        logits = exact_logits(tile, 33, 20.0)
        close(row, logits.logsumexp(1), rtol=0, atol=4e-5)
        close(column, logits.logsumexp(0), rtol=0, atol=4e-5)


def test_nan_reaches_its_own_lines_and_no_others(passes):
    buffer = random_tile(9, 37)
    buffer[2, 4] = float("nan")
    row, column, _ = passes.log_sums(buffer, 37, 1.0)
    assert row.isnan().nonzero().flatten().tolist() == [2]
    assert column.isnan().nonzero().flatten().tolist() == [4]


def test_masked_products_contribute_nothing(passes):
    buffer = random_tile(6, 9)
    buffer[2, :] = -torch.inf
    buffer[:, 5] = -torch.inf
    buffer[0, 1] = -torch.inf
    logits = exact_logits(buffer, 9, 20.0)
    row, column, _ = passes.log_sums(buffer, 9, 20.0)
    close(row, logits.logsumexp(1), rtol=0, atol=1e-5)
    close(column, logits.logsumexp(0), rtol=0, atol=1e-5)
    row, column, _ = passes.log_sums(torch.full((2, 3), -torch.inf), 3, 20.0)
    assert (row == -torch.inf).all()
    assert (column == -torch.inf).all()


def test_an_empty_tile_changes_nothing(passes):
    row, column, _ = passes.log_sums(torch.empty(0, 3), 3, 1.0)
    assert row.numel() == 0
    assert torch.equal(column, torch.full((3,), -torch.inf, dtype=torch.float64))


def test_rows_alone(passes):
    buffer = random_tile(21, 100)
    row, column, _ = passes.log_sums(buffer, 100, 10.0, rows_only=True)
    close(row, exact_logits(buffer, 100, 10.0).logsumexp(1), rtol=0, atol=1e-5)
    assert (column == -torch.inf).all()


@everywhere
@pytest.mark.parametrize("factors", [(-30.0, 30.0), (0.0, 1e-20)])
def test_anchors(passes, rows, columns, factors):
    """Two tiles side by side, at a factor of each row's own; the second lies far above or below the first."""
    tiles = [random_tile(rows, columns, padding=2, seed=k) for k in range(2)]
    tiles[1][:, :columns] += 5.0
    factor, positive = torch.linspace(*factors, rows), torch.arange(rows) + columns // 2
    products = torch.cat([exact_logits(tile, columns, 1.0) for tile in tiles], 1)
    own = is_positive(positive, 0, 2 * columns)
    logits = (factor.double()[:, None] * products).masked_fill(own, -torch.inf)
    offset, total, moment = torch.full((rows,), -torch.inf), torch.zeros(rows), torch.zeros(rows)
    for k, tile in enumerate(tiles):
        passes.call("tile_anchors", tile, columns, 1.0, positive, k * columns, factor, offset, total, moment)
        assert tile[:, columns:].isnan().all()
    close(offset.double() + total.double().log(), logits.logsumexp(1), rtol=1e-6, atol=4e-5)
    close((moment / total).double(), (logits.softmax(1) * products.masked_fill(own, 0.0)).sum(1), rtol=0, atol=6e-5)


def test_anchors_of_nothing_and_of_nan(passes):
    tile, factor = torch.tensor([[torch.nan, 1.0, 2.0], [1.0, torch.nan, 3.0], [-torch.inf] * 3]), torch.ones(3)
    offset, total, moment = torch.full((3,), -torch.inf), torch.zeros(3), torch.zeros(3)
    passes.call("tile_anchors", tile, 3, 1.0, torch.arange(3), 0, factor, offset, total, moment)
    exact = torch.tensor([1.0, 2.0]).double()
    close((offset + total.log())[0].double(), exact.logsumexp(0), rtol=1e-6, atol=0)
    close((moment / total)[0].double(), (exact.softmax(0) * exact).sum(), rtol=1e-6, atol=0)
    assert (offset + total.log())[1] == pytest.approx(torch.tensor([1.0, 3.0]).logsumexp(0).item(), rel=1e-6)
    assert (offset[2], total[2], moment[2]) == (-torch.inf, 0.0, 0.0)
    tile = torch.tensor([[0.0, torch.nan, 2.0]])
    passes.call("tile_anchors", tile, 3, 1.0, None, 0, factor, offset, total, moment)
    assert total[0].isnan()
    assert moment[0].isnan()


@everywhere
@pytest.mark.parametrize("which", ["rows", "columns", "both"])
def test_exponential_weights_with_factors_of_lines(passes, rows, columns, which):
    buffer = random_tile(rows, columns, padding=3, spread=0.3)
    given = [torch.linspace(-20.0, 40.0, rows), torch.linspace(35.0, 5.0, columns)]
    factors = [line if which in (name, "both") else None for name, line in zip(("rows", "columns"), given, strict=True)]
    along, down = (torch.tensor(30.0) if line is None else line for line in factors)
    products = exact_logits(buffer, columns, 1.0)
    to_rows, to_columns = along.double().reshape(-1, 1) * products, down.double() * products
    offsets = [to_rows.logsumexp(1), to_columns.logsumexp(0)]
    expected = (to_rows - offsets[0][:, None]).exp() + (to_columns - offsets[1]).exp()
    passes.call(
        "tile_gradient",
        buffer,
        columns,
        30.0,
        None,
        0,
        None,
        offsets[0].float(),
        factors[0],
        offsets[1].float(),
        factors[1],
    )
    close(buffer[:, :columns].double(), expected, rtol=0, atol=1e-5)
    assert buffer[:, columns:].isnan().all()


@everywhere
@pytest.mark.parametrize("terms", ["both", "rows", "columns"])
def test_exponential_weights(passes, rows, columns, terms):
    buffer = random_tile(rows, columns, padding=3, spread=0.3)
    logits = exact_logits(buffer, columns, 30.0)
    row_lse, column_lse = logits.logsumexp(1) + 0.5, logits.logsumexp(0) + 0.25  # as if other tiles had contributed
    positive, weight = torch.arange(rows) + 3, torch.linspace(-1.0, -1e-9, rows)
    expected = (logits - row_lse[:, None]).exp() * (terms != "columns") + (logits - column_lse).exp() * (
        terms != "rows"
    )
    expected = torch.where(is_positive(positive, 2, columns), weight[:, None].double(), expected)
    offsets = [row_lse.float() if terms != "columns" else None, column_lse.float() if terms != "rows" else None]
    passes.call("tile_gradient", buffer, columns, 30.0, positive, 2, weight, offsets[0], None, offsets[1], None)
    close(buffer[:, :columns].double(), expected, rtol=0, atol=1e-5)
    assert buffer[:, columns:].isnan().all()


@everywhere
def test_online_softmax(passes, rows, columns):
    """Three tiles side by side; the last one rises far above the others and shrinks what came before."""
    tiles = [random_tile(rows, columns, padding=1, seed=k) for k in range(3)]
    tiles[2][:, :columns] += 4.0
    logits = torch.cat([exact_logits(tile, columns, 9.0) for tile in tiles], 1)
    positive = torch.arange(rows) + columns // 2
    masked = logits.masked_fill(is_positive(positive, 0, 3 * columns), -torch.inf)
    offset, total, label = torch.full((rows,), -torch.inf), torch.zeros(rows), torch.full((rows,), float("nan"))
    shrink, kept = torch.empty(rows), torch.zeros(rows, 3 * columns, dtype=torch.float64)
    for k, tile in enumerate(tiles):
        passes.call(
            "tile_online_softmax", tile, columns, 9.0, positive, k * columns, label, offset, total, shrink
        )  # fmt: skip
        kept *= shrink[:, None]
        kept[:, k * columns : (k + 1) * columns] = tile[:, :columns].double()
        assert tile[:, columns:].isnan().all()
    close(offset.double() + total.double().log(), masked.logsumexp(1), rtol=0, atol=2e-5)
    close(kept / total[:, None], masked.softmax(1), rtol=2e-5, atol=1e-30)
    own = is_positive(positive, 0, 3 * columns)
    close(label[own.any(1)].double(), logits[own], rtol=1e-6, atol=0)


@everywhere
@pytest.mark.parametrize("scale", [-4.0, 0.0, 4.0, 300.0])
def test_sigmoid(passes, rows, columns, scale):
    buffer = random_tile(rows, columns, padding=2)
    bias = torch.linspace(-3.0, 1.0, columns)
    logits = exact_logits(buffer, columns, scale) + bias.double()
    # Row i's positives are columns i and 2i of a form that begins 3 columns earlier; listed twice, they count once.
    listed = torch.stack([torch.arange(rows) + 3, torch.arange(rows) * 2 + 3, torch.arange(rows) + 3], 1)
    sign = torch.where((torch.arange(columns) + 3 == listed[:, :, None]).any(1), -1.0, 1.0).double()
    offsets, total = torch.arange(rows + 1) * 3, torch.ones(columns, dtype=torch.float64)
    signed = sign * logits
    expected_loss = torch.nn.functional.softplus(signed, threshold=700.0).sum()
    forward_only = buffer.clone()
    targets = (bias, offsets, listed, 3)
    loss = passes.call("tile_sigmoid", forward_only, columns, scale, *targets, None)
    assert loss == pytest.approx(float(expected_loss), rel=1e-6)
    assert passes.call("tile_sigmoid", buffer, columns, scale, *targets, total) == loss
    close(buffer[:, :columns].double(), sign * signed.sigmoid(), rtol=1e-5 * max(1.0, abs(scale) / 10), atol=1e-37)
    close(total, 1.0 + (sign * signed.sigmoid()).sum(0), rtol=1e-5, atol=1e-5)
    assert buffer[:, columns:].isnan().all()


def test_softplus_of_confident_pairs_keeps_its_digits(passes):
    products = torch.cat([torch.linspace(-80.0, -15.0, 40), torch.linspace(-1.0, 1.0, 25)])[None].contiguous()
    offsets = torch.zeros(2, dtype=torch.int64)
    for column in range(products.shape[1]):
        one = products[:, column : column + 1].clone()
        bias, total = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
        exact = torch.nn.functional.softplus(one.double(), threshold=700.0)
        loss = passes.call("tile_sigmoid", one, 1, 1.0, bias, offsets, torch.zeros(1, dtype=torch.int64), 0, None)
        assert loss == pytest.approx(float(exact), rel=4e-7)
        passes.call("tile_sigmoid", one, 1, 1.0, bias, offsets, torch.zeros(1, dtype=torch.int64), 0, total)
        assert one.item() == pytest.approx(float(products[0, column].double().sigmoid()), rel=4e-7)


@everywhere
@pytest.mark.parametrize("distance", [1e-4, 0.05, 3.0])
def test_divergence(passes, rows, columns, distance):
    teacher = random_tile(rows, columns, padding=2, spread=0.3)
    student = teacher + distance * random_tile(rows, columns, padding=2, spread=0.1, seed=9)
    s, t = exact_logits(student, columns, 20.0), exact_logits(teacher, columns, 18.0)
    lses = [s.logsumexp(1), t.logsumexp(1), s.logsumexp(0), t.logsumexp(0)]
    divergence, entropy = passes.call(
        "tile_divergence", student, columns, 20.0, teacher, 18.0, *[lse.float() for lse in lses]
    )  # fmt: skip
    weights, expected, bits = torch.zeros_like(s), 0.0, 0.0
    for own, to in ((lses[0][:, None], lses[1][:, None]), (lses[2], lses[3])):
        p, q = (s - own).exp(), (t - to).exp()
        expected += float((q * ((t - to) - (s - own))).sum())
        bits -= float((q * (t - to)).sum())
        weights += p - q
    assert divergence == pytest.approx(expected, rel=2e-4, abs=1e-9)
    assert entropy == pytest.approx(bits, rel=1e-5, abs=1e-5)
    close(student[:, :columns].double(), weights, rtol=0, atol=1e-5)
    assert student[:, columns:].isnan().all()


@everywhere
@pytest.mark.parametrize("directions", [1, 2])
def test_curvature(passes, rows, columns, directions):
    buffers = [random_tile(rows, columns, padding=2, spread=0.2, seed=k) for k in range(1 + directions)]
    s, *moves = (exact_logits(buffer, columns, 12.0) for buffer in buffers)
    row_lse, column_lse = s.logsumexp(1) + 0.3, s.logsumexp(0) + 0.2
    p, q = (s - row_lse[:, None]).exp(), (s - column_lse).exp()
    row_sum, column_sum = torch.ones(rows, dtype=torch.float64), torch.ones(columns, dtype=torch.float64)
    form = (buffers[1], buffers[-1], row_lse.float(), column_lse.float())
    passes.call("tile_curvature_sums", buffers[0], columns, 12.0, *form, row_sum, column_sum)
    close(row_sum, 1.0 + (p * moves[0]).sum(1), rtol=0, atol=1e-5)
    close(column_sum, 1.0 + (q * moves[-1]).sum(0), rtol=0, atol=1e-5)

    positive, own = torch.arange(rows) + 1, is_positive(torch.arange(rows) + 1, 0, columns)
    row_miss, column_miss = torch.linspace(1e-9, 1.0, rows), torch.linspace(0.5, 0.7, rows)
    m = p * (moves[0] - row_sum[:, None]) + q * (moves[-1] - column_sum)
    weight = torch.linspace(-0.1, 0.2, rows)
    means = (row_sum.float(), column_sum.float(), positive, 0, row_miss, column_miss, weight)
    passes.call("tile_curvature_weights", buffers[0], columns, 12.0, *form, *means)
    m = torch.where(own, weight[:, None].double(), m)
    p, q = (torch.where(own, -miss[:, None].double(), v) for v, miss in ((p, row_miss), (q, column_miss)))
    close(buffers[1][:, :columns].double(), m, rtol=0, atol=1e-5)
    close(buffers[0][:, :columns].double(), p + q if directions == 1 else p, rtol=0, atol=1e-5)
    if directions == 2:
        close(buffers[2][:, :columns].double(), q, rtol=0, atol=1e-5)
    assert all(buffer[:, columns:].isnan().all() for buffer in buffers)


@pytest.mark.parametrize("logit", [200.0, 89.0, 88.0, 0.0, -80.0, -88.0, -104.0, -1e30, -torch.inf, torch.nan])
def test_the_exponential_at_its_ends(passes, logit):
    products, zero = torch.full((1, 33), logit), torch.zeros(33)
    passes.call("tile_gradient", products, 33, 1.0, None, 0, None, zero[:1], None, None, None)
    exact = torch.tensor(logit).double().exp().float()
    if exact < 1.2e-38:
        exact = torch.tensor(0.0)  # denormals are flushed
    close(products, exact.expand(1, 33), rtol=4e-7, atol=0, equal_nan=True)


def test_same_inputs_give_the_same_bits(passes):
    buffer = random_tile(100, 200)
    first, second = (passes.log_sums(buffer.clone(), 200, 50.0)[:2] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_bad_sizes_pointers_and_names_raise(native):
    tile = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="stride"):
        native.Tile(tile.data_ptr(), 2, 2, 3, 1.0)
    with pytest.raises(ValueError, match="rows, columns"):
        native.Tile(tile.data_ptr(), 3, -1, 3, 1.0)
    with pytest.raises(ValueError, match="products"):
        native.Tile(0, 3, 2, 3, 1.0)
    good = native.Tile(tile.data_ptr(), 3, 2, 3, 1.0)
    with pytest.raises(ValueError, match="row_sum"):
        native.tile_statistics(good, 0, 0, 0, tile.data_ptr(), 0, 0, 0)
    with pytest.raises(ValueError, match="row_offset, column_offset"):
        native.tile_gradient(good, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"name: got 'mmx'; want one of instruction_sets\(\)"):
        native.use_instruction_set("mmx")
