# SPDX-License-Identifier: Apache-2.0
"""Which samples make up which global batch: a pure function of (seed, epoch, step), with no state and no tables.

An epoch's order is a permutation of all ids that can be evaluated at any position. Small sets are permuted as a
whole. Large ones in two levels, so that reads stay near each other: blocks of consecutive ids (about a shard) are
permuted, and then the positions inside each window of many blocks. The permutations are Feistel networks with
cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipkit.data.hashing import U64, hashed, hashed_int
from clipkit.errors import value_error

Ids = NDArray[np.int64]
BLOCK = 1 << 13
WINDOW = 1 << 18
_ROUNDS = 8
_BLOCKS, _WITHIN, _ROTATION = 1, 2, 3  # what a random number is for


@dataclass(frozen=True)
class GlobalOrder:
    """The order of `num_samples` ids in global batches of `global_batch`.

    Each epoch has `steps_per_epoch` full batches; the rest of that epoch's order is dropped. `window` bounds how far
    apart (in ids permuted block by block) the samples of one batch are read; sets up to that size are shuffled whole.
    """

    num_samples: int
    global_batch: int
    seed: int
    window: int = WINDOW

    def __post_init__(self) -> None:
        for name in ("num_samples", "global_batch", "window"):
            if getattr(self, name) < 1:
                raise value_error(name, got=getattr(self, name), want="at least 1", fix="give a positive number")
        if self.global_batch > self.num_samples:
            raise value_error(
                "global_batch",
                got=self.global_batch,
                want=f"at most the {self.num_samples} samples of the set",
                fix="lower it, or use a larger set",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch."""
        return self.num_samples // self.global_batch

    def ids(self, epoch: int, step: int) -> Ids:
        """The ids of batch `step` (0 to steps_per_epoch - 1) of `epoch`: int64 [global_batch], no id twice."""
        if not 0 <= step < self.steps_per_epoch or epoch < 0:
            raise value_error(
                "step", got=(epoch, step), want=f"0 to {self.steps_per_epoch - 1} of an epoch >= 0", fix="use divmod"
            )
        return self.at(epoch, np.arange(step * self.global_batch, (step + 1) * self.global_batch))

    def at(self, epoch: int, positions: Ids) -> Ids:
        """The ids at `positions` (each 0 to num_samples - 1) of the epoch's order."""
        window = self.window if self.window >= self.num_samples else max(self.window // BLOCK, 1) * BLOCK
        number, inside = np.divmod(positions, window)
        result = np.empty_like(positions)
        for one in np.unique(number):
            rows = number == one
            start = int(one) * window
            key = hashed_int(self.seed, epoch, _WITHIN, int(one))
            result[rows] = start + permute(inside[rows], min(window, self.num_samples - start), key)
        return result if window >= self.num_samples else self._blocks(epoch, result)

    def _blocks(self, epoch: int, positions: Ids) -> Ids:
        """Permute whole blocks. Where blocks begin turns with the epoch, so that no id is always in the short one."""
        whole = self.num_samples // BLOCK
        number, inside = np.divmod(positions, BLOCK)
        moved = number < whole
        number[moved] = permute(number[moved], whole, hashed_int(self.seed, epoch, _BLOCKS))
        turn = hashed_int(self.seed, epoch, _ROTATION) % self.num_samples
        rotated: Ids = (number * BLOCK + inside + turn) % self.num_samples
        return rotated


def permute(positions: Ids, size: int, key: int) -> Ids:
    """Where the permutation of range(size) chosen by `key` sends `positions`: int64, same shape, each in range."""
    if size == 1:
        return positions.copy()
    bits = (size - 1).bit_length()
    values = _feistel(positions.astype(np.uint64), bits, key)
    # The network permutes range(2**bits), less than twice as much as wanted: walk on until back inside.
    while len(outside := np.flatnonzero(values >= size)):
        values[outside] = _feistel(values[outside], bits, key)
    return values.astype(np.int64)


def _feistel(values: U64, bits: int, key: int) -> U64:
    """An alternating Feistel network on `bits` bits; its halves may differ in width by one."""
    low = bits // 2
    widths = (bits - low, low)
    left, right = values >> np.uint64(low), values & np.uint64((1 << low) - 1)
    for turn in range(_ROUNDS):
        mask = np.uint64((1 << widths[turn % 2]) - 1)
        left, right = right, left ^ (hashed(key, turn, right) & mask)
    return (left << np.uint64(low)) | right
