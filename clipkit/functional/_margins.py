# SPDX-License-Identifier: Apache-2.0
"""Softmax statistics of both directions of the global batch in margin form, accurate down to the tiniest loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.engine import sweeps
from clipkit.engine.workspace import Workspace
from clipkit.functional._products import positive_logits
from clipkit.parallel import Layout, gather_rows, logaddexp_over_ranks


def log_sum_exps_over_ranks(
    x: Tensor,
    all_y: Tensor,
    scale: Tensor,
    layout: Layout,
    *,
    diagonal: int | None,
    backend: str,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Tensor]:
    """`clipkit.engine.sweeps.log_sum_exps` of this rank's rows [n], and of all columns over every rank's rows [N]."""
    rows, columns = sweeps.log_sum_exps(x, all_y, scale, diagonal=diagonal, workspace=workspace, backend=backend)
    return rows, logaddexp_over_ranks(columns, layout)


class Margins(NamedTuple):
    """With δ the log-sum-exp over the negatives minus the positive: loss = softplus(δ), and the softmax misses 1 - P_ii
    = σ(δ).

    Attributes:
        positive: the positives' logits of this rank's rows [n].
        row: δ along the rows [n]; -inf for a batch of one.
        column: δ along the columns of the same pairs [n].
        row_lse: log-sum-exp of this rank's rows, positive included [n].
        column_lse: log-sum-exp of all columns, positive included [N].
    """

    positive: Tensor
    row: Tensor
    column: Tensor
    row_lse: Tensor
    column_lse: Tensor

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        all_y: Tensor,
        scale: Tensor,
        layout: Layout,
        backend: str,
        workspace: Workspace | None = None,
    ) -> Margins:
        """Margins of this rank's rows `x`, `y` [n, d] against the whole batch, `all_y` [N, d] being every rank's y."""
        rows, columns = log_sum_exps_over_ranks(
            x, all_y, scale, layout, diagonal=layout.start, backend=backend, workspace=workspace
        )
        columns = columns[layout.mine]
        positive = positive_logits(x, y, scale)
        return cls(
            positive,
            rows - positive,
            columns - positive,
            torch.logaddexp(rows, positive),
            gather_rows(torch.logaddexp(columns, positive), layout),
        )
