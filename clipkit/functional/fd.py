# SPDX-License-Identifier: Apache-2.0
"""Feature distillation of CLIP-KD (arXiv 2307.12732, eq. 11): student embeddings pulled to the teacher's. No pairs, no
matrix.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine.precision import widen
from clipkit.functional._checks import check_choice, check_nonempty, check_pair, common_type
from clipkit.functional._ops import loss_op, nothing, register_unit_gradients, wants_gradient
from clipkit.parallel import Layout, group_name, sum_over_ranks


def fd_loss(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    reduction: Literal["sample", "element"] = "sample",
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Squared distance between student and teacher embeddings, image plus text.

    Args:
        student_image: this rank's rows [n, d].
        student_text: [n, d].
        teacher_image: [n, d], a constant.
        teacher_text: [n, d], a constant.
        reduction: "sample" is eq. 11, the squared norm averaged over the N samples; "element" also divides by d, the
            unit of the paper's released weights (2000 there is 2000/d here, 3.906 for d = 512).
        group: the process group that shares the batch; None for this process alone.
        backend: accepted for uniformity; there is no pairwise sweep to choose.

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank; gradients as `clip_loss` describes.

    Raises:
        TypeError, ValueError: as `clip_loss`, or an unknown reduction.
    """
    check_pair(
        student_image=student_image, student_text=student_text, teacher_image=teacher_image, teacher_text=teacher_text
    )
    check_choice("reduction", reduction, ("sample", "element"))
    image, text, to_image, to_text = common_type(student_image, student_text, teacher_image, teacher_text)
    want = wants_gradient(image, text)
    loss = _squared_distance(image, text, to_image.detach(), to_text.detach(), want, group_name(group))[0]
    return loss / image.shape[1] if reduction == "element" else loss


@loss_op("squared_distance")
def _squared_distance(
    image: Tensor, text: Tensor, to_image: Tensor, to_text: Tensor, want_gradients: bool, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(Σ squared distances / N over all ranks, unit gradients of image and text)."""
    layout = Layout.of(image, group)
    check_nonempty(layout.total)
    image_gap, text_gap = widen(image) - widen(to_image), widen(text) - widen(to_text)
    loss = sum_over_ranks(image_gap.square().sum() + text_gap.square().sum(), layout) / layout.total
    if not want_gradients:
        return loss, nothing(loss), nothing(loss)
    unit = 2 * layout.world_size / layout.total
    return loss, image_gap.mul_(unit), text_gap.mul_(unit)


@_squared_distance.register_fake
def _(
    image: Tensor, text: Tensor, to_image: Tensor, to_text: Tensor, want_gradients: bool, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.empty_like(widen(image))
    loss = wide.new_empty(())
    return (loss, wide, torch.empty_like(wide)) if want_gradients else (loss, nothing(loss), nothing(loss))


register_unit_gradients(_squared_distance)
