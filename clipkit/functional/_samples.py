# SPDX-License-Identifier: Apache-2.0
"""What ranks tell each other of every sample of the batch: a few numbers, in one message."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.parallel import Layout, gather_rows


class Samples(NamedTuple):
    """Columns of the message: 20 bytes a sample in fp32, 28 with its id, 40 with individual scales.

    Attributes:
        log_u: the new log u1 and log u2 [n, 2].
        positive: the pair's cosine [n, 1].
        share: what its two anchors add to Σ g / (u + ε) [n, 1].
        slopes: the derivatives of g / (u + ε) by the scale at constant u: the sum of both [n, 1], or one for each
            anchor's own scale [n, 2].
        scales: the anchors' own scales [n, 2], or [n, 0].
        ids: int64 [n, 1], or [n, 0].
    """

    log_u: Tensor
    positive: Tensor
    share: Tensor
    slopes: Tensor
    scales: Tensor
    ids: Tensor

    def gather(self, layout: Layout) -> Tensor:
        """Everybody's numbers in global order, [N, columns] of one floating type; ids travel as the bits they are."""
        ids = self.ids.view(self.log_u.dtype) if self.ids.shape[1] else self.ids.to(self.log_u.dtype)
        return gather_rows(torch.cat([*self[:-1], ids], dim=1), layout)

    @classmethod
    def of(cls, table: Tensor, *, individual: bool) -> Samples:
        """The columns of what `gather` returned."""
        widths = [2, 1, 1, 2, 2] if individual else [2, 1, 1, 1, 0]
        log_u, positive, share, slopes, scales, ids = table.split([*widths, table.shape[1] - sum(widths)], dim=1)
        ids = ids.contiguous().view(torch.int64) if ids.shape[1] else ids.long()
        return cls(log_u, positive, share, slopes, scales, ids)

    @staticmethod
    def width(dtype: torch.dtype, *, individual: bool, with_ids: bool) -> int:
        """How many columns `gather` returns."""
        return (8 if individual else 5) + (8 // dtype.itemsize if with_ids else 0)
