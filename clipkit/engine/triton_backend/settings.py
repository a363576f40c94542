# SPDX-License-Identifier: Apache-2.0
"""What the process asks of the kernels."""

from __future__ import annotations

import torch


def product_precision() -> str:
    """How fp32 features are multiplied: exactly, unless torch was told that its own products may use TF32.

    The library's products with the weights follow that setting by themselves; logits in one precision and gradients in
    another would be nobody's wish.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
