# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of picture tokens: queries and keys turned by the angles of their places in the grid."""

from __future__ import annotations

from torch import Tensor

from clipkit.engine.dispatch import choose


def rotate(
    query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None, *, inverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Both of them, contiguous: every adjacent pair (2m, 2m + 1) of a head, a point of the plane, turned by its angle.

    Args:
        query: [n, tokens, heads, d] or [n, 1, heads, d], of any float type; token 0 is not turned.
        key: [n, tokens, heads, d] of the same type.
        cosines: fp32 (float64 for float64 tokens) [grid * grid, d / 2].
        sines: the same.
        places: int64 [n, tokens - 1], the row of the tables for each token after the first; None: token t has row
            t - 1.
        inverse: turn back. It is the derivative of turning, transposed.
        backend: the engine's backend by name; "" for the device's default.

    Raises:
        IndexError: a place outside the tables, on a CPU. On a card Triton's kernel makes such a token NaN.
    """
    return choose("rotate", query, backend)(query, key, cosines, sines, places, inverse=inverse)
