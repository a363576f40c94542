# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, one per file. They know no autograd, no dispatch and no process groups, and import only each other.

This module imports nothing, so that `import clipkit` never pulls in triton: import `clipkit.kernels.row_col_lse` and
the like directly.
"""
