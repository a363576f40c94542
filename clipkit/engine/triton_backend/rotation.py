# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.rotation` on Triton."""

from __future__ import annotations

from torch import Tensor


def rotate(
    query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None, *, inverse: bool
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.rotation.rotate`."""
    from clipkit.kernels import rotation as kernel

    return kernel.rotate(query, key, cosines, sines, places, inverse=inverse)
