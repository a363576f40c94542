# SPDX-License-Identifier: Apache-2.0
"""One shape for every complaint to a user: which argument, what came, what is wanted, what to do."""

from __future__ import annotations


def value_error(argument: str, *, got: object, want: str, fix: str) -> ValueError:
    """A ValueError that names the argument, what it got, what it wants and what to do."""
    return ValueError(_sentence(argument, got, want, fix))


def type_error(argument: str, *, got: object, want: str, fix: str) -> TypeError:
    """A TypeError that names the argument, what it got, what it wants and what to do."""
    return TypeError(_sentence(argument, got, want, fix))


def _sentence(argument: str, got: object, want: str, fix: str) -> str:
    return f"{argument}: got {got}; want {want}; {fix}"
