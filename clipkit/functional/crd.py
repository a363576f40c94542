# SPDX-License-Identifier: Apache-2.0
"""Contrastive relational distillation of CLIP-KD (arXiv 2307.12732, eq. 4-10): the student's softmaxes pulled to the
teacher's.

With S and T the student's and teacher's logits, P, Q and Pᵗ, Qᵗ their row and column softmaxes:
rows KL_i = Σ_j Pᵗ_ij φ(log P_ij/Pᵗ_ij) with φ(r) = e^r - 1 - r, columns alike, and ∂L/∂S = (w/N) (P - Pᵗ + Q - Qᵗ).
φ adds only what sums to zero over a row, P - Pᵗ, and makes every term a square to first order: none is negative, a
rounded log-sum-exp enters squared, and the loss of a student close to its teacher is right to its own size. At 1e-8
nats and scale 100 in fp32 it is off by 4e-4 of itself, where Σ Pᵗ (T - S) - (LSE T - LSE S), a difference of numbers
near 100, has no digit left (tests/reference/test_crd_accuracy.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.functional._checks import (
    agree,
    as_scalar,
    check_choice,
    check_features,
    check_pair,
    check_same,
    common_type,
)
from clipkit.functional._margins import log_sum_exps_over_ranks
from clipkit.functional._ops import fake_gradients, loss_op, nothing, register_gradients, shared, wanted
from clipkit.functional._products import Products, products_wanted
from clipkit.parallel import announced, gather_rows, group_name, sum_over_ranks

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
    student, teacher = (student_image, student_text, student_scale), (teacher_image, teacher_text, teacher_scale)
    return _distill(*student, *teacher, reduction, group, backend)[0]


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
    student, teacher = (student_image, student_text, student_scale), (teacher_image, teacher_text, teacher_scale)
    loss, entropy = _distill(*student, *teacher, "mean_directions", group, backend)
    return loss + entropy


def _distill(
    student_image: Tensor,
    student_text: Tensor,
    student_scale: Tensor | float,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Tensor | float,
    reduction: str,
    group: ProcessGroup | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """(KL, the teacher's entropy): the entropy a constant, in the same units."""
    name = group_name(group)
    with announced(name):
        check_features(
            student_image=student_image,
            student_text=student_text,
            teacher_image=teacher_image,
            teacher_text=teacher_text,
        )
        check_pair(student_image=student_image, student_text=student_text)
        check_pair(teacher_image=teacher_image, teacher_text=teacher_text)
        check_same("rows", 0, student_image=student_image, teacher_image=teacher_image)
        check_choice("reduction", reduction, tuple(_WEIGHTS))
        image, text, to_image, to_text = common_type(student_image, student_text, teacher_image, teacher_text)
        scale = as_scalar("student_scale", student_scale, image)
        to_scale = as_scalar("teacher_scale", teacher_scale, image)
    teacher = (to_image.detach(), to_text.detach(), to_scale.detach())
    options = (_WEIGHTS[reduction], wanted(image, text, scale), name, backend or "")
    loss, entropy, *_ = _crd(image, text, scale, *teacher, *options)
    return shared(loss, name), entropy.detach()


@loss_op("crd")
def _crd(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    weight: float,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, teacher's entropy, unit gradients of image, text and scale)."""
    layout = agree(image, group, "crd_loss", to_image.shape[1], weight, wants=wants, backend=backend)
    student = (image, gather_rows(text, layout), scale)
    teacher = (to_image, gather_rows(to_text, layout), to_scale)
    (row_student, column_student), (row_teacher, column_teacher) = (
        log_sum_exps_over_ranks(*form, layout, diagonal=None, backend=backend) for form in (student, teacher)
    )
    want_x, want_y = products_wanted(layout.wants)
    sums = sweeps.pair_divergence(
        *student,
        *teacher,
        row_student=row_student,
        row_teacher=row_teacher,
        column_student=column_student,
        column_teacher=column_teacher,
        want_x=want_x,
        want_y=want_y,
        backend=backend,
    )
    unit = weight / layout.total
    divergence, entropy = sum_over_ranks(torch.stack([sums.divergence, sums.entropy]), layout)
    loss, entropy = divergence * unit, entropy * unit
    if not any(layout.wants):
        return loss, entropy, *nothing(loss)
    products = Products.collect(sums.g_y, sums.gt_x, layout)
    return loss, entropy, *products.gradients(image, text, scale, layout, unit=unit, wants=wants)


@_crd.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    to_scale: Tensor,
    weight: float,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss = image.new_empty((), dtype=accumulation(image))
    return loss, torch.empty_like(loss), *fake_gradients(wants, loss, image, text, scale)


register_gradients(_crd, count=3)
