# SPDX-License-Identifier: Apache-2.0
"""What every sweep over S = scale * X Yᵀ does first: choose a tile, and multiply its rows of X and Y."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def swizzled_tile(program, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """(row tile, column tile) of a program. Programs that run together share column tiles of Y in L2: they walk GROUP
    row tiles down before they step right.
    """
    row_tiles = tl.cdiv(rows, BLOCK_M)
    per_group = GROUP * tl.cdiv(columns, BLOCK_N)
    first = program // per_group * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    return first + program % per_group % height, program % per_group // height


@triton.jit
def lines(tile, BLOCK: tl.constexpr):
    """The BLOCK row or column numbers of a tile, 64-bit: times the row stride they pass 2**31 at a million rows of
    width 2048.
    """
    return tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def tile_products(
    x,
    y,
    i,
    j,
    rows,
    columns,
    x_stride,
    y_stride,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """fp32 products [BLOCK_M, BLOCK_N] of the rows i [BLOCK_M] of x [rows, WIDTH] and j [BLOCK_N] of y [columns,
    WIDTH], unit stride along WIDTH. PRECISION is "ieee", "tf32x3" or "tf32" and matters for fp32 inputs only.
    """
    products = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    return add_products(products, x, y, i, j, rows, columns, x_stride, y_stride, WIDTH, BLOCK_K, PRECISION)


@triton.jit
def add_products(
    products,
    x,
    y,
    i,
    j,
    rows,
    columns,
    x_stride,
    y_stride,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    width=None,
):
    """tile_products, added to what `products` holds.

    Lines past the edge repeat the last one, so that no load of the loop needs a mask for them: what they give is
    finite wherever the inputs are, and the caller's to drop. With `width`, the same number known at run time only, the
    compiler cannot unroll the loop: where a kernel carries registers from tile to tile, unrolling makes it spill.
    """
    k = tl.arange(0, BLOCK_K)
    x_tile = x + tl.minimum(i, rows - 1)[:, None] * x_stride + k[None, :]
    y_tile = y + tl.minimum(j, columns - 1)[None, :] * y_stride + k[:, None]
    end = WIDTH if width is None else width
    for start in range(0, end, BLOCK_K):
        if WIDTH % BLOCK_K == 0:
            a = tl.load(x_tile)
            b = tl.load(y_tile)
        else:
            a = tl.load(x_tile, mask=start + k[None, :] < WIDTH, other=0.0)
            b = tl.load(y_tile, mask=start + k[:, None] < WIDTH, other=0.0)
        products = tl.dot(a, b, products, input_precision=PRECISION)
        x_tile += BLOCK_K
        y_tile += BLOCK_K
    return products


@triton.jit
def exponential(logits, offset):
    """e^(logits - offset). The difference is taken in nats, before it goes to base 2: two rounded products of 144 would
    differ by more. exp2 flushes what is below 1e-38, for which tl.exp spends three more instructions.
    """
    return tl.exp2((logits - offset) * LOG2E)


@triton.jit
def own_pairs(
    i, row_tile, column_tile, diagonal, labels, OWN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """(local, meets): where in the tile each row's own pair is, 32-bit and in [0, BLOCK_N) if it is there, and whether
    any is. The own pair of row i is in column i + diagonal, or labels[i] where OWN is "labels".

    Worth a branch: one tile in thousands meets the diagonal, and a select on all would cost two instructions a logit.
    """
    first = tl.cast(column_tile, tl.int64) * BLOCK_N
    if OWN == "labels":
        local = (tl.load(labels + i) - first).to(tl.int32)
        meets = tl.max(((local >= 0) & (local < BLOCK_N)).to(tl.int32), 0) > 0
    else:
        local = (i + diagonal - first).to(tl.int32)
        gap = first - tl.cast(row_tile, tl.int64) * BLOCK_M - diagonal
        meets = (gap > -BLOCK_N) & (gap < BLOCK_M)
    return local, meets


@triton.jit
def past_edges(tile, row_tile, column_tile, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile with -inf past the edges. Most tiles have none and only take the branch around the selects."""
    rows_left = (rows - tl.cast(row_tile, tl.int64) * BLOCK_M).to(tl.int32)
    columns_left = (columns - tl.cast(column_tile, tl.int64) * BLOCK_N).to(tl.int32)
    if (rows_left < BLOCK_M) | (columns_left < BLOCK_N):
        tile = tl.where(tl.arange(0, BLOCK_M)[:, None] < rows_left, tile, float("-inf"))
        tile = tl.where(tl.arange(0, BLOCK_N)[None, :] < columns_left, tile, float("-inf"))
    return tile


@triton.jit
def store_tile(matrix, values, i, j, rows, stride, EVEN: tl.constexpr):
    """Write a tile to the rows i and columns j of a matrix, in its type. Columns past the edge are written too, as far
    as the row's stride reaches: a mask at an edge that is no multiple of 16 bytes would make every store one of 2
    bytes.
    """
    at = matrix + i[:, None] * stride + j[None, :]
    values = values.to(matrix.dtype.element_ty)
    if EVEN:
        tl.store(at, values)
    else:
        tl.store(at, values, mask=(i[:, None] < rows) & (j[None, :] < stride))


@triton.jit
def load_tile(matrix, i, j, rows, stride, EVEN: tl.constexpr):
    """A tile of the rows i and columns j of a matrix that store_tile wrote; past the edges whatever is there, or 0."""
    at = matrix + i[:, None] * stride + j[None, :]
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=(i[:, None] < rows) & (j[None, :] < stride), other=0.0)
