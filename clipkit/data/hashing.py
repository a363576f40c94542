# SPDX-License-Identifier: Apache-2.0
"""Random numbers as a pure function of what they are for, so that no order of work can change them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def mix(values: U64) -> U64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, with Stafford's constants): a bijection that scatters."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def hashed(*parts: ArrayLike) -> U64:
    """64 random bits for each element of the broadcast integer `parts`; the order of the parts matters."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = mix((state ^ _as_u64(part)) + _GOLDEN)
    return state


def uniform(*parts: ArrayLike) -> NDArray[np.float64]:
    """A number in [0, 1) for each element of the broadcast integer `parts`."""
    return (hashed(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _as_u64(part: ArrayLike) -> U64:
    if isinstance(part, int):  # also negative ones and those beyond 64 bit: a seed is any integer
        return np.asarray(part & _MASK, dtype=np.uint64)
    return np.asarray(part).astype(np.uint64)
