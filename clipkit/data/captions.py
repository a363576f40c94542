# SPDX-License-Identifier: Apache-2.0
"""Vary captions: the caption itself, then some of the sample's tags, chosen by (seed, epoch, id)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from clipkit.data.hashing import hashed, uniform

_HOW_MANY, _WHICH = 20, 21  # what a random number is for
SEPARATOR = ", "


def with_tags(
    caption: str, tags: Sequence[str], how_many: tuple[int, int], *, seed: int, epoch: int, index: int
) -> str:
    """`caption` followed by k different tags in random order, k uniform in `how_many` (both ends included), all of
    them where there are fewer than k."""
    low, high = how_many
    k = low + math.floor(float(uniform(seed, epoch, index, _HOW_MANY)) * (high - low + 1))
    if k == 0 or not tags:
        return caption
    chosen = np.argsort(hashed(seed, epoch, index, _WHICH, np.arange(len(tags))), kind="stable")[:k]
    return SEPARATOR.join([caption, *(tags[number] for number in chosen)])
