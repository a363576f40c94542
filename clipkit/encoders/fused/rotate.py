# SPDX-License-Identifier: Apache-2.0
"""Rotary positions (Su et al. 2021) of picture tokens, queries and keys in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.encoders.fused._shared import check_float, for_the_compiler
from clipkit.engine import rotation
from clipkit.engine.precision import accumulation
from clipkit.engine.torch_backend.rotation import turned
from clipkit.errors import type_error, value_error


def rotate(
    query: Tensor,
    key: Tensor,
    cosines: Tensor,
    sines: Tensor,
    places: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries and keys with every adjacent pair of channels turned by the angle that the pair has at the token's place:

        y[2m] = x[2m] cos - x[2m + 1] sin,    y[2m + 1] = x[2m + 1] cos + x[2m] sin

    Computed in fp32 (float64 for float64) and rounded once. The first token, the class token, is not turned. Nothing
    is kept for the backward pass but tables and places: it turns back. Neither is anything saved by turning in place:
    a token is read once and written once either way.

    Args:
        query: [n, tokens, heads, d], d even; or [n, 1, heads, d] of the class tokens alone, which come out as they are.
            Any strides: a slice of one projection's output need not be copied.
        key: [n, tokens, heads, d] of the same dtype.
        cosines: of the angles, fp32 [places, d / 2] (float64 for float64 tokens); constant, no gradient.
        sines: the same.
        places: int64 [n, tokens - 1], each token's row of the tables, as patch dropout kept them. None: token t is at
            row t - 1, and the tables have as many rows as there are tokens after the first.
        backend: the engine's backend by name; None for the device's default.

    Returns:
        The two, contiguous.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit together.
        IndexError: a place outside the tables, on a CPU. (On a card, where looking would be waiting, Triton's kernel
            makes the token NaN, and plain torch fails on the device. Plain torch counts negative places from the end.)
    """
    _check(query, key, cosines, sines, places)
    if for_the_compiler("rotate", query, backend):
        return turned(query, cosines, sines, places), turned(key, cosines, sines, places)
    return _rotate(query, key, cosines, sines, places, False, backend or "")


def _check(query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None) -> None:
    check_float("key", key)
    if key.ndim != 4 or key.shape[3] % 2 or key.shape[1] == 0:
        want = "[n, tokens, heads, d] with an even d and a class token"
        raise value_error("key", got=f"shape {tuple(key.shape)}", want=want, fix="split the projection into heads")
    n, tokens, heads, width = key.shape
    shape_fits = query.ndim == 4 and query.shape[1] in (1, tokens) and query.shape[::2] == key.shape[::2]
    if not shape_fits or query.shape[3] != width or query.dtype != key.dtype or query.device != key.device:
        got = f"{query.dtype} of shape {tuple(query.shape)} on {query.device}"
        want = f"{key.dtype} on {key.device}, [{n}, {tokens} or 1, {heads}, {width}]"
        raise value_error("query", got=got, want=want, fix="take it from the same tokens as the key")
    for argument, table in (("cosines", cosines), ("sines", sines)):
        if table.dtype != accumulation(key):
            raise type_error(argument, got=table.dtype, want=str(accumulation(key)), fix="keep tables in this type")
        rows_fit = table.ndim == 2 and (table.shape[0] == tokens - 1 if places is None else table.shape[0] > 0)
        if not rows_fit or table.shape[1] != width // 2 or table.shape != cosines.shape or table.device != key.device:
            got = f"shape {tuple(table.shape)} on {table.device}"
            rows = str(tokens - 1) if places is None else "places"
            want = f"[{rows}, {width // 2}] on {key.device}, the same for both"
            raise value_error(argument, got=got, want=want, fix="make the tables for this grid and head width")
    if places is None:
        return
    if places.dtype != torch.int64 or places.shape != (n, tokens - 1) or places.device != key.device:
        got = f"{places.dtype} of shape {tuple(places.shape)} on {places.device}"
        want = f"int64 [{n}, {tokens - 1}] on {key.device}"
        raise value_error("places", got=got, want=want, fix="pass the numbers of the patches that were kept")


@torch.library.custom_op("clipkit::rotate", mutates_args=())
def _rotate(
    query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None, inverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return rotation.rotate(query, key, cosines, sines, places, inverse=inverse, backend=backend)


@_rotate.register_fake
def _(
    query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None, inverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, *tables, ctx.inverse, ctx.backend = inputs
    ctx.save_for_backward(*tables)


def _backward(ctx: Any, d_query: Tensor, d_key: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _rotate(d_query, d_key, *ctx.saved_tensors, not ctx.inverse, ctx.backend)
    return (*gradients, None, None, None, None, None)


_rotate.register_autograd(_backward, setup_context=_setup)
