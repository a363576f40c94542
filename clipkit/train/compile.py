# SPDX-License-Identifier: Apache-2.0
"""torch.compile, block by block: a few compilations at the start of a run, none later."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

_VERSIONS = 64


def compile_blocks(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile each block where it is first called.

    Blocks of a class share their compiled versions, one for each combination met of: picture or caption, all rows or
    the pooled ones, gradients or not, autocast or not, and sizes as they first came or symbolic. GradCache with uneven
    micro-batches and an evaluation meet 10, more than torch's limit of 8, beyond which it would silently go on
    uncompiled: the limit is raised, for the process.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VERSIONS)
    for block in blocks:
        block.compile(backend=backend)
