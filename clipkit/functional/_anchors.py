# SPDX-License-Identifier: Apache-2.0
"""A rank's own samples, its anchors, against the keys of the whole batch: FastCLIP's schedule.

Every rank gathers both towers and, later, a few numbers per sample; its own gradients need nothing more. Each tower's
rows meet all keys of the other: 6 units of 2·n·N·d FLOP, where one sweep for both directions takes 4 but ends in a
reduce-scatter of a tower. The bytes are the same, but of these the images' can travel while the text tower computes,
and no gradient is waited for at the end. Alone there is nothing to gather, and one sweep serves both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.engine import sweeps
from clipkit.functional._products import positive_logits, products_wanted
from clipkit.parallel import Gathering, Layout, begin_gather

IMAGE, TEXT = 0, 1


def begin_keys(features: Tensor, layout: Layout, payload: torch.dtype | None) -> Gathering:
    """Send this rank's rows of a tower to every rank, in `payload` where they should travel in another type."""
    return begin_gather(features.detach().to(payload or features.dtype), layout)


def gather_keys(
    image: Tensor, text: Tensor, image_keys: Tensor, layout: Layout, payload: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """All ranks' images and texts, [N, d] each, in the features' type.

    Args:
        image_keys: the images, where they were gathered before; else empty, and both travel as one message.
    """
    if layout.group is None:
        return image, text
    if image_keys.numel():
        text_keys = begin_keys(text, layout, payload).wait()
    else:
        both = begin_keys(torch.cat([image, text], dim=1), layout, payload).wait()
        image_keys, text_keys = both.tensor_split(2, dim=1)
    return image_keys.to(image.dtype).contiguous(), text_keys.to(image.dtype).contiguous()


@dataclass(frozen=True)
class Anchors:
    """`towers` are this rank's image and text rows [n, d], `keys` everybody's [N, d]; `scale` is 0-D and common to all,
    or [n, 2] with a multiplier for each image and each text anchor.
    """

    towers: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]
    scale: Tensor
    layout: Layout
    backend: str

    @property
    def common(self) -> bool:
        """Whether all anchors have the same scale."""
        return self.scale.dim() == 0

    @property
    def in_one_sweep(self) -> bool:
        """Whether one exponential serves a pair's row and its column."""
        return self.common and self.layout.group is None

    def positives(self) -> Tensor:
        """The cosine of each pair, [n, 1]."""
        return positive_logits(*self.towers, self.scale.new_ones(())).unsqueeze(1)

    def statistics(self) -> tuple[Tensor, Tensor | None]:
        """(log-sum-exp over an anchor's negatives [n, 2], the mean of their cosines under that softmax [n, 2]); no
        means from one sweep for both directions.
        """
        if self.in_one_sweep:
            sums = sweeps.log_sum_exps(*self.towers, self.scale, diagonal=0, backend=self.backend)
            return torch.stack(sums, dim=1), None
        found = []
        for side, keys in ((IMAGE, self.keys[TEXT]), (TEXT, self.keys[IMAGE])):
            scale = self.scale if self.common else self.scale[:, side].contiguous()
            found.append(
                sweeps.anchor_statistics(
                    self.towers[side], keys, scale, diagonal=self.layout.start, backend=self.backend
                )
            )
        sums, means = zip(*found, strict=True)
        return torch.stack(sums, dim=1), torch.stack(means, dim=1)

    def products(self, offsets: Tensor, scales: Tensor, positive_weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """This rank's rows of W T and of Wᵀ I, for W_ij = e^(s1_i S_ij - a1_i) + e^(s2_j S_ij - a2_j).

        Args:
            offsets: a1 and a2 of the whole batch [N, 2].
            scales: s1 and s2 of the whole batch [N, 2]; not looked at where the scale is common.
            positive_weight: W_ii of this rank's pairs [n].
        """

        def side(rows: int, keys: Tensor, *, want_x: bool, want_y: bool) -> tuple[Tensor | None, Tensor | None]:
            mine, columns = self.layout.mine, 1 - rows
            return sweeps.exponential_products(
                self.towers[rows],
                keys,
                self.scale if self.common else offsets.new_ones(()),
                row_offset=offsets[mine, rows].contiguous(),
                column_offset=offsets[:, columns].contiguous(),
                row_scale=None if self.common else scales[mine, rows].contiguous(),
                column_scale=None if self.common else scales[:, columns].contiguous(),
                diagonal=self.layout.start,
                diagonal_weight=positive_weight,
                want_x=want_x,
                want_y=want_y,
                backend=self.backend,
            )

        wants = self.layout.wants
        if self.layout.group is None:
            want_image, want_text = products_wanted((*wants[:2], wants[2] and self.in_one_sweep))
            return side(IMAGE, self.keys[TEXT], want_x=want_image, want_y=want_text)
        image, _ = side(IMAGE, self.keys[TEXT], want_x=True, want_y=False) if wants[IMAGE] else (None, None)
        text, _ = side(TEXT, self.keys[IMAGE], want_x=True, want_y=False) if wants[TEXT] else (None, None)
        return image, text
