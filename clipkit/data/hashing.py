# SPDX-License-Identifier: Apache-2.0
"""Random numbers as a pure function of what they are for, so that no order of work can change them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(values: U64) -> U64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, with Stafford's constants): a bijection that scatters.

    `values` has at least one dimension: on 0-D arrays NumPy warns of the overflow that is wanted here.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hashed(*parts: ArrayLike) -> U64:
    """64 random bits for each element of the broadcast integer `parts`, at least 1-D; their order matters."""
    leading = 0
    while leading < len(parts) and isinstance(parts[leading], int):
        leading += 1
    state = np.array([hashed_int(*parts[:leading])], dtype=np.uint64)  # type: ignore[arg-type]
    for part in parts[leading:]:
        number = np.uint64(part & _MASK) if isinstance(part, int) else np.asarray(part).astype(np.uint64)
        state = mix((state ^ number) + np.uint64(_GOLDEN))
    return state


def hashed_int(*parts: int) -> int:
    """What `hashed` gives for single integers of any size and sign, without the cost of arrays."""
    state = 0
    for part in parts:
        state = ((state ^ part & _MASK) + _GOLDEN) & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def uniform(*parts: ArrayLike) -> NDArray[np.float64]:
    """A number in [0, 1) for each element of the broadcast integer `parts`."""
    return (hashed(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53
