# SPDX-License-Identifier: Apache-2.0
"""What every loss asks of its arguments, so that a mistake is named before anything is computed, on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import dispatch
from clipkit.engine.precision import FLOATS, accumulation
from clipkit.errors import type_error, value_error
from clipkit.parallel import ALONE, Layout, announced, group_name


def check_features(**named: Tensor) -> None:
    """Every argument a floating [n, d] tensor with d >= 1, all on one device.

    Raises:
        TypeError: not a tensor, or not of a floating type that the engine accumulates exactly.
        ValueError: not two-dimensional, no columns, or another device than the first argument's.
    """
    first_name, first = next(iter(named.items()))
    for name, features in named.items():
        if not isinstance(features, Tensor):
            raise type_error(
                name, got=f"a {type(features).__name__}", want="a torch.Tensor [n, d]", fix="pass the encoder's output"
            )
        if features.dtype not in FLOATS:
            raise type_error(
                name,
                got=str(features.dtype),
                want="float32, bfloat16, float16 or float64",
                fix="convert it with .to(...)",
            )
        if features.dim() != 2 or features.shape[1] == 0:
            raise value_error(
                name,
                got=f"shape {tuple(features.shape)}",
                want="two dimensions [n, d] with d >= 1",
                fix="pass one row of features per sample",
            )
        if features.device != first.device:
            raise value_error(
                name,
                got=f"a tensor on {features.device}",
                want=f"{first_name}'s device, {first.device}",
                fix=f"move it with .to({str(first.device)!r})",
            )


def check_same(what: str, axis: int, **named: Tensor) -> None:
    """All arguments equal in size along `axis` ("rows" or "columns" in the message is `what`)."""
    (first_name, first), *others = named.items()
    for name, features in others:
        if features.shape[axis] != first.shape[axis]:
            raise value_error(
                name,
                got=f"{features.shape[axis]} {what} (shape {tuple(features.shape)})",
                want=f"as many {what} as {first_name}: {first.shape[axis]} (shape {tuple(first.shape)})",
                fix="pass both towers of the same samples and of the same embedding width",
            )


def check_pair(**named: Tensor) -> None:
    """Two towers of one model: [n, d] each, row i of one belonging to row i of the other."""
    check_features(**named)
    check_same("columns", 1, **named)
    check_same("rows", 0, **named)


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        raise value_error(argument, got=repr(value), want=f"one of {list(choices)}", fix="choose one of them")


def check_fraction(argument: str, value: float, *, low: float, high: float, low_open: bool = False) -> None:
    """low <= value <= high, or low < value where `low_open`."""
    want = f"a number in {'(' if low_open else '['}{low}, {high}]"
    if not isinstance(value, (int, float)):
        raise type_error(argument, got=f"a {type(value).__name__}", want=want, fix="pass a float")
    if not (low < value if low_open else low <= value) or not value <= high:
        raise value_error(argument, got=value, want=want, fix="correct the setting")


def check_bytes(argument: str, value: int | None) -> None:
    """A whole number of bytes, or None."""
    want = "a whole number of bytes of at least 0, or None"
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise type_error(argument, got=f"a {type(value).__name__}", want=want, fix="pass an int: 2 << 30 is 2 GiB")
    if value < 0:
        raise value_error(argument, got=value, want=want, fix="pass 0 or None to keep nothing")


def agree(
    rows: Tensor, group: str, *settings: object, wants: Sequence[bool] = (), backend: str = "", least: int = 1
) -> Layout:
    """What an operator does first: the ranks agree on the batch, in which `rows` [n, d] are this rank's.

    Raises:
        ValueError: the backend cannot serve such tensors here; on every rank, when ranks disagree (`Layout.of`) or the
            global batch has fewer than `least` rows.
    """
    with announced(group):
        dispatch.choose("log_sum_exps", rows, backend)
    layout = Layout.of(rows, group, wants=wants, settings=settings)
    if layout.total < least:
        raise value_error(
            "batch",
            got=f"{layout.total} rows in the global batch",
            want=f"at least {least}",
            fix="skip the step when no rank has samples" if least == 1 else "use a larger batch: negatives are needed",
        )
    return layout


def check_world_size(told: int, group: ProcessGroup | None) -> None:
    """A world size above one that a module was told of is that of its group."""
    name = group_name(group)
    actual = 1 if name == ALONE else dist.get_world_size(group)
    with announced(name):
        if told > 1 and told != actual:
            raise value_error(
                "world_size",
                got=told,
                want=f"the size of the process group, {actual}",
                fix="initialise torch.distributed before the first step, or leave world_size out",
            )


def check_vector(argument: str, vector: Tensor, length: int, like: Tensor, *, per: str) -> None:
    """`vector` is a floating [length] tensor on the device of `like`, with one value `per` something."""
    if not isinstance(vector, Tensor) or not vector.is_floating_point():
        got = str(vector.dtype) if isinstance(vector, Tensor) else f"a {type(vector).__name__}"
        raise type_error(argument, got=got, want=f"a floating tensor ({length},)", fix=f"pass one value per {per}")
    if vector.shape != (length,) or vector.device != like.device:
        raise value_error(
            argument,
            got=f"shape {tuple(vector.shape)} on {vector.device}",
            want=f"shape ({length},) on {like.device}",
            fix=f"pass one value per {per}",
        )


def as_integers(argument: str, values: Tensor) -> Tensor:
    """`values` as an int64 vector.

    Raises:
        TypeError: no tensor, no integers, or not one-dimensional.
    """
    if not isinstance(values, Tensor):
        raise type_error(argument, got=f"a {type(values).__name__}", want="an integer tensor", fix="make it a tensor")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool or values.dim() != 1:
        raise type_error(
            argument,
            got=f"{values.dtype} of shape {tuple(values.shape)}",
            want="integers in one dimension",
            fix="pass an int64 vector",
        )
    return values.long()


def readable(values: Tensor) -> bool:
    """Whether values may be looked at: reading a device's would wait for it, reading a traced tensor's would break the
    graph.
    """
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def as_scalar(argument: str, value: Tensor | float, like: Tensor) -> Tensor:
    """`value` as a 0-D tensor of the accumulation type on the features' device, differentiable in the tensor it came
    from.

    Accepts a float, a 0-D tensor, or a one-element tensor [1]; the gradient takes the shape and dtype of what was
    passed.
    """
    dtype = accumulation(like)
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            raise value_error(
                argument,
                got=f"a {value.dtype} tensor of shape {tuple(value.shape)}",
                want="one floating number: a float, a 0-D or a [1] tensor",
                fix="pass the multiplier itself (logit_scale.exp())",
            )
        if value.device != like.device and value.device.type != "cpu":
            raise value_error(
                argument, got=f"a tensor on {value.device}", want=f"{like.device}", fix=f"move it to {like.device}"
            )
        return value.reshape(()).to(device=like.device, dtype=dtype)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full((), float(value), dtype=dtype, device=like.device)
    raise type_error(
        argument,
        got=f"a {type(value).__name__}",
        want="a float, a 0-D or a [1] tensor",
        fix="pass the multiplier itself",
    )


def common_type(*features: Tensor) -> tuple[Tensor, ...]:
    """The features in one floating type, the widest that was passed, and contiguous: what an operator returns is laid
    out like its inputs, and torch.compile has to know that layout beforehand.
    """
    dtype = features[0].dtype
    for other in features[1:]:
        dtype = torch.promote_types(dtype, other.dtype)
    return tuple(each.to(dtype).contiguous() for each in features)
