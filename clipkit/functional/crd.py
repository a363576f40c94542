# SPDX-License-Identifier: Apache-2.0
"""Contrastive relational distillation of CLIP-KD (arXiv 2307.12732, eq. 4-10): the student's softmaxes pulled to the
teacher's.

With S and T the student's and teacher's logits, P, Q and Pᵗ, Qᵗ their row and column softmaxes:
rows KL_i = Σ_j Pᵗ_ij (T_ij - S_ij) - (LSE T_i - LSE S_i), columns alike, and ∂L/∂S = (w/N) (P - Pᵗ + Q - Qᵗ).
Accumulating the difference T - S, not two means of size 100, keeps the loss to about 1e-7 nats in fp32, and exactly
zero for identical models.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.functional._checks import (
    as_scalar,
    check_choice,
    check_features,
    check_nonempty,
    check_pair,
    check_same,
    common_type,
)
from clipkit.functional._ops import loss_op, nothing, register_closed_form
from clipkit.functional._products import Products, fake_gradients
from clipkit.parallel import (
    Layout,
    gather_rows,
    group_name,
    logaddexp_over_ranks,
    saved_like,
    sum_over_ranks,
    world_size_of,
)

_WEIGHTS = {"mean_directions": 0.5, "sum_directions": 1.0}


def crd_loss(
    student_image: Tensor,
    student_text: Tensor,
    student_scale: Tensor | float,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Tensor | float,
    *,
    reduction: Literal["mean_directions", "sum_directions"] = "mean_directions",
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """KL(teacher ‖ student) of image-to-text and text-to-image softmaxes over the global batch, in nats per row.

    Args:
        student_image: this rank's rows [n, d].
        student_text: [n, d].
        student_scale: the student's multiplier: a float, a 0-D or a [1] tensor; it gets a gradient.
        teacher_image: [n, e], a constant; e may differ from d, no projection is needed.
        teacher_text: [n, e], a constant.
        teacher_scale: the teacher's multiplier, a constant.
        reduction: "mean_directions" halves the sum of both directions (the released code), "sum_directions" does not
            (eq. 10).
        group: the process group that shares the batch; None for this process alone.
        backend: the engine's backend by name; None for the device's default.

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank; gradients as `clip_loss` describes, none to the
        teacher.

    Raises:
        TypeError, ValueError: as `clip_loss`, or an unknown reduction.
    """
    check_choice("reduction", reduction, tuple(_WEIGHTS))
    outputs = _distill(
        student_image, student_text, student_scale, teacher_image, teacher_text, teacher_scale, group, backend
    )
    return outputs[0] * (2 * _WEIGHTS[reduction])


def soft_target_cross_entropy(
    student_image: Tensor,
    student_text: Tensor,
    student_scale: Tensor | float,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Tensor | float,
    *,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mean over both directions of the cross-entropy of the student under the teacher's softmax, the distillation term
    of open_clip.

    It is `crd_loss` plus the teacher's entropy, a constant: the same gradients, another value. Arguments as `crd_loss`.
    """
    loss, entropy, *_ = _distill(
        student_image, student_text, student_scale, teacher_image, teacher_text, teacher_scale, group, backend
    )
    return loss + entropy.detach()


def _distill(
    student_image: Tensor,
    student_text: Tensor,
    student_scale: Tensor | float,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Tensor | float,
    group: ProcessGroup | None,
    backend: str | None,
) -> tuple[Tensor, ...]:
    check_features(
        student_image=student_image, student_text=student_text, teacher_image=teacher_image, teacher_text=teacher_text
    )
    check_pair(student_image=student_image, student_text=student_text)
    check_pair(teacher_image=teacher_image, teacher_text=teacher_text)
    check_same("rows", 0, student_image=student_image, teacher_image=teacher_image)
    image, text, to_image, to_text = common_type(student_image, student_text, teacher_image, teacher_text)
    scale = as_scalar("student_scale", student_scale, image)
    to_scale = as_scalar("teacher_scale", teacher_scale, image)
    teacher = (to_image.detach(), to_text.detach(), to_scale.detach())
    return _crd_forward(image, text, scale, *teacher, group_name(group), backend or "")


@loss_op("crd_forward")
def _crd_forward(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, teacher's entropy, four log-sum-exps, all ranks' student and teacher text unless alone, layout)."""
    layout = Layout.of(image, group)
    check_nonempty(layout.total)
    all_text, all_to_text = gather_rows(text, layout), gather_rows(to_text, layout)
    s = sweeps.pair_statistics(image, all_text, scale, to_image, all_to_text, to_scale, backend=backend)
    column_student = logaddexp_over_ranks(s.column_student, layout)
    column_teacher = logaddexp_over_ranks(s.column_teacher_lse, layout)
    # Each rank's teacher-weighted column means, reweighted by its share of the column's mass, then summed.
    share = (s.column_teacher_lse - column_teacher).exp_()
    column_gap = sum_over_ranks(s.column_gap * share, layout)
    column_mean = sum_over_ranks(s.column_teacher * share, layout)

    row_gap_lse = s.row_teacher_lse - s.row_student
    rows = sum_over_ranks(
        torch.stack([(s.row_gap - row_gap_lse).sum(), (s.row_teacher_lse - s.row_teacher).sum()]), layout
    )
    loss = rows[0] + (column_gap - (column_teacher - column_student)).sum()
    entropy = rows[1] + (column_teacher - column_mean).sum()
    half = 2 * layout.total
    kept = (nothing(text), nothing(text)) if layout.group is None else (all_text, all_to_text)
    lses = (s.row_student, s.row_teacher_lse, column_student, column_teacher)
    return loss / half, entropy / half, *lses, *kept, layout.saved()


@_crd_forward.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, rows, ranks = accumulation(image), image.shape[0], world_size_of(group)
    total = rows if ranks == 1 else torch.library.get_ctx().new_dynamic_size()
    kept = [nothing(t) if ranks == 1 else t.new_empty(total, t.shape[1]) for t in (text, to_text)]
    lses = [image.new_empty(size, dtype=dtype) for size in (rows, rows, total, total)]
    loss, layout = image.new_empty((), dtype=dtype), saved_like(group)
    return loss, torch.empty_like(loss), lses[0], lses[1], lses[2], lses[3], kept[0], kept[1], layout


@loss_op("crd_backward")
def _crd_backward(
    grad: Tensor,
    group: str,
    backend: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    entropy: Tensor,
    row_student: Tensor,
    row_teacher: Tensor,
    column_student: Tensor,
    column_teacher: Tensor,
    kept_text: Tensor,
    kept_to_text: Tensor,
    saved_layout: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the student's image, text and scale in the accumulation type."""
    layout = Layout.recall(saved_layout, group)
    alone = layout.group is None
    products = sweeps.pair_products(
        image,
        text if alone else kept_text,
        scale,
        to_image,
        to_text if alone else kept_to_text,
        to_scale,
        row_student=row_student,
        row_teacher=row_teacher,
        column_student=column_student,
        column_teacher=column_teacher,
        backend=backend,
    )
    unit = grad / (2 * layout.total)
    return Products(*products).collect(layout).unit_gradients(image, text, scale, unit, layout)


@_crd_backward.register_fake
def _(
    grad: Tensor,
    group: str,
    backend: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *rest: object,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(grad, image, text, scale)


register_closed_form(_crd_forward, _crd_backward, tensors=6)
