# SPDX-License-Identifier: Apache-2.0
"""Sigmoid family on Triton."""

from __future__ import annotations

from torch import Tensor

from clipkit.engine.triton_backend.settings import product_precision


def sigmoid_sweep(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, *, diagonal: int, want_gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.sigmoid_sweep`."""
    from clipkit.kernels import sigmoid_sweep as kernel

    return kernel.sigmoid_sweep(
        x, y, scale, bias, diagonal=diagonal, want_gradients=want_gradients, precision=product_precision()
    )


def labelled_sigmoid_sweep(
    x: Tensor, weight: Tensor, bias: Tensor, target_offsets: Tensor, target_indices: Tensor, *, want_gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.labelled_sigmoid_sweep`. A label listed twice in a row counts once."""
    from clipkit.kernels import sigmoid_sweep as kernel

    return kernel.labelled_sigmoid_sweep(
        x,
        weight,
        bias,
        target_offsets,
        target_indices,
        want_gradients=want_gradients,
        precision=product_precision(),
    )
