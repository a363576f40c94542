# SPDX-License-Identifier: Apache-2.0
"""Interactive contrastive learning of CLIP-KD (arXiv 2307.12732, eq. 14-16): student anchors against frozen teacher
keys.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.functional._checks import check_pair
from clipkit.functional.info_nce import info_nce
from clipkit.parallel import announced, group_name


def icl_loss(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    scale: Tensor | float,
    *,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """½ (InfoNCE of student images against teacher texts + of student texts against teacher images), in nats.

    Args:
        student_image: this rank's rows [n, d].
        student_text: [n, d].
        teacher_image: [n, d], a constant: it gets no gradient. A teacher of another width is projected by the caller.
        teacher_text: [n, d], a constant.
        scale: the multiplier shared by both directions (already exponentiated): a float, a 0-D or a [1] tensor.
        group: the process group that shares the batch; None for this process alone.
        backend: the engine's backend by name; None for the device's default.

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank; gradients as `clip_loss` describes.

    Raises:
        TypeError, ValueError: as `clip_loss`.
    """
    with announced(group_name(group)):
        check_pair(
            student_image=student_image,
            student_text=student_text,
            teacher_image=teacher_image,
            teacher_text=teacher_text,
        )
    image = info_nce(student_image, teacher_text, scale, key_grad=False, group=group, backend=backend)
    text = info_nce(student_text, teacher_image, scale, key_grad=False, group=group, backend=backend)
    return (image + text) / 2
