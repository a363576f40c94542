# SPDX-License-Identifier: Apache-2.0
"""Pages that a person looks at: the report of a run and the results of a search, each one self-contained HTML file."""

from __future__ import annotations

from clipkit.report.report import write_report
from clipkit.report.results import write_results

__all__ = ["write_report", "write_results"]
