# SPDX-License-Identifier: Apache-2.0
"""Which attention kernel runs: dense for pictures, variable-length for packed captions.

Both have a table of kernels, best first (`DENSE`, `PACKED`); the first that can serve the device, dtype and head width
does, and `clipkit doctor` says why each other one does not. CLIPKIT_ATTENTION and CLIPKIT_PACKED_ATTENTION force one.
"""

from clipkit.encoders.attention.choice import Status, Table
from clipkit.encoders.attention.dense import DENSE, dense_attention
from clipkit.encoders.attention.packed import PACKED, PackedAttention, packed_attention

__all__ = ["DENSE", "PACKED", "PackedAttention", "Status", "Table", "dense_attention", "packed_attention"]
