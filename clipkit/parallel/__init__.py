# SPDX-License-Identifier: Apache-2.0
"""What crosses ranks: who holds which rows of the global batch, and the few collectives a loss needs.

Collectives belong to torch.distributed (gloo and NCCL both run); with one process nothing here communicates.
"""

from clipkit.parallel.collectives import (
    Gathering,
    begin_gather,
    gather_rows,
    logaddexp_over_ranks,
    scatter_sum_rows,
    sum_over_ranks,
)
from clipkit.parallel.layout import ALONE, Layout, announced, group_name
from clipkit.parallel.means import mean_over_ranks
from clipkit.parallel.sample_table import Placement, Reading, SampleTable, check_table

__all__ = [
    "ALONE",
    "Gathering",
    "Layout",
    "Placement",
    "Reading",
    "SampleTable",
    "announced",
    "begin_gather",
    "check_table",
    "gather_rows",
    "group_name",
    "logaddexp_over_ranks",
    "mean_over_ranks",
    "scatter_sum_rows",
    "sum_over_ranks",
]
