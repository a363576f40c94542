# SPDX-License-Identifier: Apache-2.0
"""Training methods: a configuration plus a small object each. See `base.BaseRecipe` for the contract."""

from clipkit.recipes.base import BaseRecipe, create_recipe

__all__ = ["BaseRecipe", "create_recipe"]
