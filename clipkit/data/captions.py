# SPDX-License-Identifier: Apache-2.0
"""Vary captions: the caption itself, then some of the sample's tags, chosen by (seed, epoch, id)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipkit.data.hashing import hashed, uniform

_HOW_MANY, _WHICH = 20, 21  # what a random number is for
SEPARATOR = ", "


def with_tags(
    captions: Sequence[str],
    tags: Sequence[Sequence[str]],
    how_many: tuple[int, int],
    *,
    seed: int,
    epoch: int,
    ids: NDArray[np.int64],
) -> list[str]:
    """Each caption followed by k different tags of its sample in random order; k is uniform in `how_many` (both ends
    included), all of them where there are fewer than k. `tags` and `ids` run parallel to `captions`."""
    low, high = how_many
    if high == 0 or not captions:
        return list(captions)
    wanted = low + np.floor(uniform(seed, epoch, _HOW_MANY, ids) * (high - low + 1)).astype(np.int64)
    most = max(map(len, tags))
    rank = hashed(seed, epoch, _WHICH, ids[:, None], np.arange(most))
    varied = []
    for caption, own, k, order in zip(captions, tags, wanted.tolist(), rank, strict=True):
        chosen = np.argsort(order[: len(own)], kind="stable")[:k].tolist() if k and own else []
        varied.append(SEPARATOR.join([caption, *(own[number] for number in chosen)]))
    return varied
