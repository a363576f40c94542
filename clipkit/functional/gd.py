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

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.engine.sweeps import Direction
from clipkit.functional._checks import as_scalar, check_choice, check_nonempty, check_pair, common_type
from clipkit.functional._margins import Margins
from clipkit.functional._ops import loss_op, nothing, register_closed_form
from clipkit.functional._products import Products, fake_gradients
from clipkit.parallel import Layout, gather_rows, group_name, saved_like, sum_over_ranks, world_size_of


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
    check_pair(
        student_image=student_image, student_text=student_text, teacher_image=teacher_image, teacher_text=teacher_text
    )
    form = form.replace("-", "_")  # type: ignore[assignment]
    check_choice("form", form, ("symmetric", "four_term"))
    image, text, to_image, to_text = common_type(student_image, student_text, teacher_image, teacher_text)
    scale = as_scalar("student_scale", student_scale, image)
    to_scale = as_scalar("teacher_scale", teacher_scale, image)
    teacher = (to_image.detach(), to_text.detach(), to_scale.detach())
    return _gd_forward(image, text, scale, *teacher, form == "symmetric", group_name(group), backend or "")[0]


@loss_op("gd_forward")
def _gd_forward(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    symmetric: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, Σ<D, g>/s of the image fields, row LSE, column LSE, row miss, column miss, D1, D2, D4, D3, all ranks'
    text, layout).

    Directions are this rank's rows; in the symmetric form D4 and D3 are empty, being D1 and D2.
    """
    layout = Layout.of(image, group)
    check_nonempty(layout.total)
    all_text = gather_rows(text, layout)
    margins = Margins.of(image, text, all_text, scale, layout, backend)
    ours = _fields(image, all_text, scale, margins, symmetric, layout, backend)
    all_to_text = gather_rows(to_text, layout)
    to_margins = Margins.of(to_image, to_text, all_to_text, to_scale, layout, backend)
    theirs = _fields(to_image, all_to_text, to_scale, to_margins, symmetric, layout, backend)

    gaps = [scale * g - to_scale * h for g, h in zip(ours, theirs, strict=True)]
    loss = sum_over_ranks(torch.stack([gap.square().sum() for gap in gaps]).sum(), layout) / layout.total
    # Half of D in the symmetric form: its field is the mean of two, so each direction's field receives half.
    unit = (1.0 if symmetric else 2.0) / layout.total
    directions = [gap.mul_(unit) for gap in gaps]
    # An image field enters the scale's gradient once per direction: twice in the symmetric form, where D1 = D4.
    image_fields = zip(directions[::2], ours[::2], strict=True)
    along = torch.stack([(d * g).sum() for d, g in image_fields]).sum() * (2 if symmetric else 1)
    if symmetric:
        directions += [nothing(loss), nothing(loss)]
    d1, d2, d4, d3 = directions
    kept_text = nothing(text) if layout.group is None else all_text
    misses = (torch.sigmoid(margins.row), torch.sigmoid(margins.column))
    lses = (margins.row_lse, margins.column_lse)
    return loss, sum_over_ranks(along, layout), *lses, *misses, d1, d2, d4, d3, kept_text, layout.saved()


def _fields(
    x: Tensor, all_y: Tensor, scale: Tensor, margins: Margins, symmetric: bool, layout: Layout, backend: str
) -> list[Tensor]:
    """Gradient fields over s, this rank's rows: (½(g1+g4), ½(g2+g3)) in the symmetric form, else (g1, g2, g4, g3)."""
    row_miss, column_miss = torch.sigmoid(margins.row), torch.sigmoid(margins.column)
    softmaxes: list[tuple[Tensor | None, Tensor | None, Tensor]]
    if symmetric:
        softmaxes = [(margins.row_lse, margins.column_lse, -(row_miss + column_miss))]
    else:
        softmaxes = [(margins.row_lse, None, -row_miss), (None, margins.column_lse, -column_miss)]
    fields = []
    for row_offset, column_offset, diagonal_weight in softmaxes:
        products = sweeps.exponential_products(
            x,
            all_y,
            scale,
            row_offset=row_offset,
            column_offset=column_offset,
            diagonal=layout.start,
            diagonal_weight=diagonal_weight,
            backend=backend,
        )
        collected = Products(*products).collect(layout)
        assert collected.g_y is not None
        assert collected.gt_x is not None
        fields += [collected.g_y, collected.gt_x]
    return [field.mul_(0.5) for field in fields] if symmetric else fields


@_gd_forward.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    symmetric: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, rows, ranks = accumulation(image), image.shape[0], world_size_of(group)
    total = rows if ranks == 1 else torch.library.get_ctx().new_dynamic_size()
    loss, layout = image.new_empty((), dtype=dtype), saved_like(group)
    lse, column_lse, row_miss, column_miss = (loss.new_empty(size) for size in (rows, total, rows, rows))
    d1, d2 = (loss.new_empty(image.shape) for _ in range(2))
    d4, d3 = (nothing(loss) if symmetric else torch.empty_like(d1) for _ in range(2))
    kept_text = nothing(text) if ranks == 1 else text.new_empty(total, text.shape[1])
    return (
        loss, torch.empty_like(loss), lse, column_lse, row_miss, column_miss, d1, d2, d4, d3, kept_text, layout,
    )  # fmt: skip


@loss_op("gd_backward")
def _gd_backward(
    grad: Tensor,
    symmetric: bool,
    group: str,
    backend: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    along: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    row_miss: Tensor,
    column_miss: Tensor,
    d1: Tensor,
    d2: Tensor,
    d4: Tensor,
    d3: Tensor,
    kept_text: Tensor,
    saved_layout: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the student's image, text and scale in the accumulation type."""
    layout = Layout.recall(saved_layout, group)
    all_text = text if layout.group is None else kept_text
    along_rows = Direction(d1, gather_rows(d2, layout))
    along_columns = along_rows if symmetric else Direction(d4, gather_rows(d3, layout))
    form = (image, all_text, scale, along_rows, along_columns)
    row_mean, column_mean = sweeps.curvature_sums(*form, row_lse=row_lse, column_lse=column_lse, backend=backend)
    products = sweeps.curvature_products(
        *form,
        row_lse=row_lse,
        column_lse=column_lse,
        row_mean=row_mean,
        column_mean=sum_over_ranks(column_mean, layout),
        row_miss=row_miss,
        column_miss=column_miss,
        diagonal=layout.start,
        backend=backend,
    )
    collected = Products(*products).collect(layout)
    grad_image, grad_text, grad_scale = collected.unit_gradients(image, text, scale, grad, layout)
    return grad_image, grad_text, grad_scale + grad * along


@_gd_backward.register_fake
def _(
    grad: Tensor,
    symmetric: bool,
    group: str,
    backend: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *rest: object,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(grad, image, text, scale)


register_closed_form(_gd_forward, _gd_backward, tensors=6)
