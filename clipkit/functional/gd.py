# SPDX-License-Identifier: Apache-2.0
"""Gradient distillation of CLIP-KD (arXiv 2307.12732, eq. 13 and 19-25): the student's contrastive gradient pulled to
the teacher's.

The loss compares gradient fields of the CLIP loss, so its own gradient is a Hessian-vector product of the CLIP loss
along the difference. That has a closed form in tiles; no second-order autograd, no N x N matrix, O(N·d) saved.

With P, Q the student's row and column softmax, the four fields are g1 = s (P-I) V and g4 = s (Q-I) V for the images,
g2 = s (P-I)ᵀ U and g3 = s (Q-I)ᵀ U for the texts (the gradients of N times each direction's mean loss). The symmetric
form compares ½(g1 + g4) and ½(g2 + g3), the four-term form each of the four by itself. Per field D = (2/N)(g - h), h
the teacher's; the form of the directions (D1, D2) along the rows and (D4, D3) along the columns covers both, with D1 =
D4 and D2 = D3 in the symmetric form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation, widen
from clipkit.engine.sweeps import Direction, Softmaxes
from clipkit.functional._checks import agree, as_scalar, check_choice, check_pair, common_type
from clipkit.functional._margins import Margins
from clipkit.functional._ops import fake_gradients, loss_op, nothing, only_if, register_gradients, shared, wanted
from clipkit.functional._products import Products
from clipkit.parallel import Layout, announced, gather_rows, group_name, sum_over_ranks


def gd_loss(
    student_image: Tensor,
    student_text: Tensor,
    student_scale: Tensor | float,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Tensor | float,
    *,
    form: Literal["symmetric", "four_term", "four-term"] = "symmetric",
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """(1/N) Σ squared differences between the student's and the teacher's gradients of the CLIP loss with respect to
    their features.

    The gradients are taken without the 1/N of the batch mean (eq. 25's units), so a weight chosen at one batch size
    holds at another.

    Args:
        student_image: this rank's rows [n, d].
        student_text: [n, d].
        student_scale: the student's multiplier (already exponentiated): a float, a 0-D or a [1] tensor; it gets a
            gradient.
        teacher_image: [n, d], a constant; the same width as the student (project it first where it differs).
        teacher_text: [n, d], a constant.
        teacher_scale: the teacher's multiplier, a constant.
        form: "symmetric" compares the gradients of the symmetric loss (the paper), "four_term" those of each direction
            and each role.
        group: the process group that shares the batch; None for this process alone.
        backend: the engine's backend by name; None for the device's default.

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank; gradients as `clip_loss` describes, none to the
        teacher.

    Raises:
        TypeError, ValueError: as `clip_loss`, or an unknown form.
    """
    name = group_name(group)
    with announced(name):
        check_pair(
            student_image=student_image,
            student_text=student_text,
            teacher_image=teacher_image,
            teacher_text=teacher_text,
        )
        check_choice("form", form, ("symmetric", "four_term", "four-term"))
        image, text, to_image, to_text = common_type(student_image, student_text, teacher_image, teacher_text)
        scale = as_scalar("student_scale", student_scale, image)
        to_scale = as_scalar("teacher_scale", teacher_scale, image)
    teacher = (to_image.detach(), to_text.detach(), to_scale.detach())
    options = (form == "symmetric", wanted(image, text, scale), name, backend or "")
    return shared(_gd(image, text, scale, *teacher, *options)[0], name)


@loss_op("gd")
def _gd(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    symmetric: bool,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, unit gradients of image, text and scale)."""
    layout = agree(image, group, "gd_loss", symmetric, wants=wants, backend=backend)
    all_text = gather_rows(text, layout)
    margins = Margins.of(image, text, all_text, scale, layout, backend)
    ours = _fields(image, all_text, scale, margins, symmetric, layout, backend)
    all_to_text = gather_rows(to_text, layout)
    to_margins = Margins.of(to_image, to_text, all_to_text, to_scale, layout, backend)
    theirs = _fields(to_image, all_to_text, to_scale, to_margins, symmetric, layout, backend)

    gaps = [
        _Fields(scale * g.image - to_scale * h.image, scale * g.text - to_scale * h.text)
        for g, h in zip(ours, theirs, strict=True)
    ]
    squares = torch.stack([field.square().sum() for gap in gaps for field in gap]).sum()
    loss = sum_over_ranks(squares, layout) / layout.total
    if not any(layout.wants):
        return loss, *nothing(loss)
    # Half of D in the symmetric form: its field is the mean of two, so each direction's field receives half.
    unit = (1.0 if symmetric else 2.0) / layout.total
    directions = [_Fields(gap.image.mul_(unit), gap.text.mul_(unit)) for gap in gaps]
    # An image field enters the scale's gradient once per direction: twice in the symmetric form, where D1 = D4.
    along = torch.stack([(d.image * g.image).sum() for d, g in zip(directions, ours, strict=True)]).sum()
    through_fields = sum_over_ranks(along, layout) * (2 if symmetric else 1)
    products = _curvature(image, text, all_text, scale, margins, directions, layout, backend)
    image_grad, text_grad, through_softmax = products.gradients(
        image, text, scale, layout, unit=1.0, wants=(wants[0], wants[1], True)
    )
    return loss, image_grad, text_grad, only_if(wants[2], through_softmax + through_fields, like=loss)


@_gd.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    symmetric: bool,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = image.new_empty((), dtype=accumulation(image))
    return loss, *fake_gradients(wants, loss, image, text, scale)


register_gradients(_gd, count=3)


class _Fields(NamedTuple):
    """A gradient field, or a direction, of each tower: this rank's rows [n, d]."""

    image: Tensor
    text: Tensor


def _fields(
    x: Tensor, all_y: Tensor, scale: Tensor, margins: Margins, symmetric: bool, layout: Layout, backend: str
) -> list[_Fields]:
    """Gradient fields over s: (½(g1+g4), ½(g2+g3)) in the symmetric form, else (g1, g2) and (g4, g3)."""
    x, all_y = widen(x), widen(all_y)  # the loss is made of these products: no weight may be rounded to 16 bit
    row_miss, column_miss = torch.sigmoid(margins.row), torch.sigmoid(margins.column)
    softmaxes: list[tuple[Tensor | None, Tensor | None, Tensor]]
    if symmetric:
        softmaxes = [(margins.row_lse, margins.column_lse, -(row_miss + column_miss))]
    else:
        softmaxes = [(margins.row_lse, None, -row_miss), (None, margins.column_lse, -column_miss)]
    fields = []
    for row_offset, column_offset, diagonal_weight in softmaxes:
        products = Products.exponential(
            x,
            all_y,
            scale,
            layout,
            row_offset=row_offset,
            column_offset=column_offset,
            diagonal_weight=diagonal_weight,
            wants=(True, True, True),
            backend=backend,
        )
        assert products.g_y is not None
        assert products.gt_x is not None
        fields.append(_Fields(products.g_y, products.gt_x))
    return [_Fields(both.image.mul_(0.5), both.text.mul_(0.5)) for both in fields] if symmetric else fields


def _curvature(
    image: Tensor,
    text: Tensor,
    all_text: Tensor,
    scale: Tensor,
    margins: Margins,
    directions: list[_Fields],
    layout: Layout,
    backend: str,
) -> Products:
    """The Hessian of the student's CLIP loss applied to the directions: one for both softmaxes, or one for each.

    The softmax-weighted means of R are taken relative to the positive's own R_ii: of a learned pair P_ii is nearly 1,
    and R_ii minus a mean that consists of it would have no digit left.
    """
    gathered = [Direction(each.image, gather_rows(each.text, layout)) for each in directions]
    form = (image, all_text, scale, gathered[0], gathered[-1])
    row_lse, column_lse = margins.row_lse, margins.column_lse
    row_sum, column_sum = sweeps.curvature_sums(
        *form, row_lse=row_lse, column_lse=column_lse, diagonal=layout.start, backend=backend
    )
    column_sum = sum_over_ranks(column_sum, layout)[layout.mine]
    row_miss, column_miss = torch.sigmoid(margins.row), torch.sigmoid(margins.column)
    own = [_own_move(image, text, scale, direction) for direction in directions]
    row_shift, column_shift = row_sum - row_miss * own[0], column_sum - column_miss * own[-1]
    softmaxes = Softmaxes(
        row_lse=row_lse,
        column_lse=column_lse,
        row_mean=own[0] + row_shift,
        column_mean=gather_rows(own[-1] + column_shift, layout),
        row_miss=row_miss,
        column_miss=column_miss,
        positive_weight=(row_miss - 1) * row_shift + (column_miss - 1) * column_shift,
        diagonal=layout.start,
    )
    products = sweeps.curvature_products(*form, softmaxes, backend=backend)
    return Products.collect(*products, layout)


def _own_move(image: Tensor, text: Tensor, scale: Tensor, direction: _Fields) -> Tensor:
    """R_ii [n], how the positives' logits move along a direction."""
    moved = torch.linalg.vecdot(direction.image, widen(text)) + torch.linalg.vecdot(widen(image), direction.text)
    return scale * moved
