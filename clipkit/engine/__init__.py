# SPDX-License-Identifier: Apache-2.0
"""The pairwise engine: what a loss needs of S = scale · X Yᵀ, computed tile by tile, S never stored.

`sweeps` is the interface (one function per family of losses), `dispatch` chooses the implementation, `torch_backend` is
the one that every device can run and every reader can check.
"""
