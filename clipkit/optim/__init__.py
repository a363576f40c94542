# SPDX-License-Identifier: Apache-2.0
"""Parameter groups and schedules."""

from clipkit.optim.groups import parameter_groups
from clipkit.optim.schedule import learning_rate

__all__ = ["learning_rate", "parameter_groups"]
