# SPDX-License-Identifier: Apache-2.0
"""Which of a checkpoint's tensors a translated one was made of, whatever a layout did to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from clipkit.encoders.layouts import Layout, State


class _Traced(Tensor):
    """A tensor whose every result remembers the names of the tensors that it came from."""

    origins: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        origins = frozenset[str]().union(*(one.origins for one in _traced((args, kwargs))))
        for one in _traced(result):
            one.origins = origins
        return result


def translate(layout: Layout, state: State) -> tuple[State, dict[str, frozenset[str]]]:
    """The tensors under our names, and for each the names in `state` that it was joined, cut or computed from."""
    traced: State = {}
    for name, value in state.items():
        traced[name] = one = value.detach().as_subclass(_Traced)
        one.origins = frozenset((name,))
    translated = layout.translate(traced)
    origins = {name: frozenset[str]().union(*(one.origins for one in _traced(v))) for name, v in translated.items()}
    return {name: value.as_subclass(Tensor) for name, value in translated.items()}, origins


def _traced(tree: Any) -> list[_Traced]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, _Traced)]
