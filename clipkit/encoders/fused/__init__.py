# SPDX-License-Identifier: Apache-2.0
"""Operations of a transformer block that pass over memory once: rotary positions, the gated activation of SwiGLU with
its LayerNorm, and residual sums with theirs.

Each is an operator of torch.library (one node for torch.compile, no graph break) that keeps its inputs and two numbers
a row for the backward pass and computes the rest again. A backend of clipkit.engine runs it. Where that is plain torch
and torch.compile asks, the formula takes the operator's place: the compiler fuses what it can see.
"""

from clipkit.encoders.fused.add_norm import add_norm
from clipkit.encoders.fused.add_post_norm import add_post_norm
from clipkit.encoders.fused.rotate import rotate
from clipkit.encoders.fused.swiglu_norm import swiglu_norm

__all__ = ["add_norm", "add_post_norm", "rotate", "swiglu_norm"]
