# SPDX-License-Identifier: Apache-2.0
"""Feature distillation of CLIP-KD (arXiv 2307.12732, eq. 11): student embeddings pulled to the teacher's. No pairs, no
matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine.precision import accumulation, widen
from clipkit.functional._checks import agree, check_choice, check_pair, common_type
from clipkit.functional._ops import fake_gradient, loss_op, only_if, register_gradients, shared, wanted
from clipkit.parallel import announced, group_name, sum_over_ranks


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
        backend: accepted and checked for uniformity; there is no pairwise sweep to choose.

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank; gradients as `clip_loss` describes.

    Raises:
        TypeError, ValueError: as `clip_loss`, or an unknown reduction.
    """
    name = group_name(group)
    with announced(name):
        check_pair(
            student_image=student_image,
            student_text=student_text,
            teacher_image=teacher_image,
            teacher_text=teacher_text,
        )
        check_choice("reduction", reduction, ("sample", "element"))
        image, text, to_image, to_text = common_type(student_image, student_text, teacher_image, teacher_text)
    weight = 1 / image.shape[1] if reduction == "element" else 1.0
    options = (weight, wanted(image, text), name, backend or "")
    return shared(_squared_distance(image, text, to_image.detach(), to_text.detach(), *options)[0], name)


@loss_op("squared_distance")
def _squared_distance(
    image: Tensor,
    text: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    weight: float,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weight · Σ squared distances / N over all ranks, unit gradients of image and text)."""
    layout = agree(image, group, "fd_loss", weight, backend=backend)
    gaps = [widen(image) - widen(to_image), widen(text) - widen(to_text)]
    unit = weight / layout.total
    loss = unit * sum_over_ranks(gaps[0].square().sum() + gaps[1].square().sum(), layout)
    # No feature crosses ranks here; world_size is the mean over ranks that DDP or FSDP takes.
    image_grad, text_grad = (gap.mul_(2 * unit * layout.world_size) for gap in gaps)
    return loss, only_if(wants[0], image_grad, like=loss), only_if(wants[1], text_grad, like=loss)


@_squared_distance.register_fake
def _(
    image: Tensor,
    text: Tensor,
    to_image: Tensor,
    to_text: Tensor,
    weight: float,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = image.new_empty((), dtype=accumulation(image))
    return loss, fake_gradient(wants[0], image, loss), fake_gradient(wants[1], text, loss)


register_gradients(_squared_distance, count=2)
