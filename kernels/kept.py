# SPDX-License-Identifier: Apache-2.0
"""The products <x_i, y_j> of a sweep, kept for the next one instead of computed again: when that pays, and where they
lie.

They are kept in fp32, unscaled. Logits must not be rounded to 16 bit; exponentials relative to their tile's largest
would bear it, but lose every line 87 nats below it, as the forward's sums do, and weights have no cheap repair.
"""

from __future__ import annotations

import torch

from .form import Form
from .waves import pitch

KEPT_BYTES = 8
"""A product is written once and read once, 4 bytes each time."""

FLOPS_PER_BYTE = {"16 bit": 267, "tf32": 133, "tf32x3": 44, "ieee": 20}
"""What a card multiplies while its memory moves one byte, by the kind of products: of an H100, 800 TFLOP/s in 16 bit,
half of that in TF32, a third of this in three products, and 60 on the ordinary pipes, over 3 TB/s. An A100 has 143 in
16 bit, a B200 229; where the memory is slower than the table says, keeping wins a little less than computed here.

So a product of width d is worth keeping if 2 d > 8 * 267: beyond d = 1068 in 16 bit (at 768 it takes 1.9 ps to compute
and 2.7 to move), but beyond 80 for fp32 in full precision (at 512, 17 ps to compute).
"""


def keeping_pays(features: torch.Tensor, precision: str) -> bool:
    """Whether S of such features takes longer to compute than to write and read."""
    kind = precision if features.dtype == torch.float32 else "16 bit"
    return 2 * features.shape[1] > KEPT_BYTES * FLOPS_PER_BYTE[kind]


def unwritten(form: Form, rows: int) -> torch.Tensor:
    """Memory [rows, columns] fp32 for the products of some rows of a form. What lies between the last column and the
    next row may be written.
    """
    memory = torch.empty((rows, pitch(form.columns, torch.float32)), dtype=torch.float32, device=form.x.device)
    return memory[:, : form.columns]
