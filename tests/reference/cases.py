# SPDX-License-Identifier: Apache-2.0
"""One table of the loss family: for each, its inputs, the library's call and the naive form. Properties loop over
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import clipkit
from tests.reference import naive
from tests.reference.naive import unit

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A loss of the family.

    Attributes:
        make: (rows, width, dtype) -> (differentiable inputs by name, constants by name); per-sample ones come
            first-dimension = rows.
        ours: the library's function of those inputs, taking also group= and backend=.
        naive: the definition.
        pooled: names of inputs that are not split over ranks (scales, weights).
    """

    name: str
    make: Callable[[int, int, torch.dtype], tuple[dict[str, Tensor], dict[str, Tensor]]]
    ours: Call
    naive: Call
    pooled: tuple[str, ...]


def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(value, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def _pair(rows, width, dtype):
    return {"a": unit(rows, width, 1, dtype), "b": unit(rows, width, 2, dtype), "s": _scalar(7.0, dtype)}, {}


def _pair_with_bias(rows, width, dtype):
    inputs, _ = _pair(rows, width, dtype)
    return {**inputs, "bias": _scalar(-3.0, dtype)}, {}


def _with_state(rows, width, dtype):
    inputs, _ = _pair(rows, width, dtype)
    state = torch.linspace(-2.0, 1.0, max(rows, 1), dtype=inputs["s"].dtype)[:rows].clone()
    return inputs, {"u": state, "v": state.flip(0)}


def _with_teacher(rows, width, dtype, teacher_width=None):
    inputs, _ = _pair(rows, width, dtype)
    wide = teacher_width or width
    return inputs, {"A": unit(rows, wide, 3, dtype), "B": unit(rows, wide, 4, dtype)}


def _with_classes(rows, width, dtype):
    inputs = {"x": unit(rows, width, 5, dtype), "w": unit(2 * width + 1, width, 6, dtype)}
    inputs["c"] = unit(1, 2 * width + 1, 7, dtype)[0]
    labels = (torch.arange(rows)[:, None] * torch.tensor([1, 3]) + torch.tensor([0, 1])) % (2 * width + 1)
    return inputs, {"labels": labels}


def _bce(call):
    def run(x, w, c, labels, **options):
        offsets = torch.arange(len(x) + 1, device=labels.device) * labels.shape[1]
        return call(x, w, c, offsets, labels.reshape(-1), **options)

    return run


_PAIR_POOLED = ("s", "bias")

CASES = [
    Case(
        "clip",
        _pair,
        lambda a, b, s, **o: clipkit.clip_loss(a, b, s, **o),
        lambda a, b, s: naive.clip(a, b, s),
        _PAIR_POOLED,
    ),
    Case(
        "clip_smoothed",
        _pair,
        lambda a, b, s, **o: clipkit.clip_loss(a, b, s, label_smoothing=0.2, **o),
        lambda a, b, s: naive.clip(a, b, s, 0.2),
        _PAIR_POOLED,
    ),
    Case(
        "siglip",
        _pair_with_bias,
        lambda a, b, s, bias, **o: clipkit.siglip_loss(a, b, s, bias, **o),
        lambda a, b, s, bias: naive.siglip(a, b, s, bias),
        _PAIR_POOLED,
    ),
    Case(
        "info_nce",
        _pair,
        lambda a, b, s, **o: clipkit.info_nce(a, b, s, **o),
        lambda a, b, s: naive.info_nce(a, b, s),
        _PAIR_POOLED,
    ),
    Case(
        "global_contrastive",
        _with_state,
        lambda a, b, s, u, v, **o: clipkit.global_contrastive_loss(a, b, s, u, v, gamma=0.3, eps=1e-3, **o)[0],
        lambda a, b, s, u, v: naive.global_contrastive(a, b, s, u, v, 0.3, 1e-3)[0],
        _PAIR_POOLED,
    ),
    Case(
        "crd",
        lambda n, d, t: _with_teacher(n, d, t, d + 3),
        lambda a, b, s, A, B, **o: clipkit.crd_loss(a, b, s, A, B, 4.0, **o),
        lambda a, b, s, A, B: naive.crd(a, b, s, A, B, 4.0),
        _PAIR_POOLED,
    ),
    Case(
        "icl",
        _with_teacher,
        lambda a, b, s, A, B, **o: clipkit.icl_loss(a, b, A, B, s, **o),
        lambda a, b, s, A, B: naive.icl(a, b, A, B, s),
        _PAIR_POOLED,
    ),
    Case(
        "fd",
        lambda n, d, t: ({k: v for k, v in _pair(n, d, t)[0].items() if k != "s"}, _with_teacher(n, d, t)[1]),
        lambda a, b, A, B, **o: clipkit.fd_loss(a, b, A, B, **o),
        lambda a, b, A, B: naive.fd(a, b, A, B),
        (),
    ),
    Case(
        "gd_symmetric",
        _with_teacher,
        lambda a, b, s, A, B, **o: clipkit.gd_loss(a, b, s, A, B, 4.0, **o),
        lambda a, b, s, A, B: naive.gd(a, b, s, A, B, 4.0),
        _PAIR_POOLED,
    ),
    Case(
        "gd_four_term",
        _with_teacher,
        lambda a, b, s, A, B, **o: clipkit.gd_loss(a, b, s, A, B, 4.0, form="four_term", **o),
        lambda a, b, s, A, B: naive.gd(a, b, s, A, B, 4.0, "four_term"),
        _PAIR_POOLED,
    ),
    Case(
        "linear_bce",
        _with_classes,
        _bce(clipkit.linear_bce_with_logits),
        _bce(naive.linear_bce),
        ("w", "c"),
    ),
]

BY_NAME = {case.name: case for case in CASES}


def value_and_gradients(call: Call, inputs: dict[str, Tensor], constants: dict[str, Tensor]) -> dict[str, Tensor]:
    """{"loss": ..., and each differentiable input's gradient under its name}."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    loss = call(**leaves, **constants)
    loss.backward()
    return {"loss": loss.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
