# SPDX-License-Identifier: Apache-2.0
"""Text without padding: captions end to end in one row of tokens.

Under causal attention a token sees only what is before it, and the feature is read at the end-of-text token, so
nothing after that token can reach the output. It is dropped before the embedding, not masked inside the layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.errors import type_error, value_error


@dataclass(frozen=True)
class PackedText:
    """n captions, T tokens in all, ordered by length so that captions of equal length are neighbours.

    ids, positions: int64 [T], token ids and their places within their captions.
    cu_seqlens: int32 [n + 1], where each caption starts (flash-attention's convention).
    last: int64 [n], the flat place of each caption's end-of-text token.
    inverse: int64 [n], row i of the caller's batch is caption inverse[i] here.
    groups: (length, count) runs of captions of equal length, as plain numbers.
    context_length: upper bound of a caption's length; constant, so that compiled code does not depend on the batch.
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    last: Tensor
    inverse: Tensor
    groups: tuple[tuple[int, int], ...]
    context_length: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedText:
        """The same captions on another device. Packed on the CPU and moved, they cost the device no sync."""
        ids, positions, cu_seqlens, last, inverse = (
            tensor.to(device, non_blocking=non_blocking)
            for tensor in (self.ids, self.positions, self.cu_seqlens, self.last, self.inverse)
        )
        return PackedText(ids, positions, cu_seqlens, last, inverse, self.groups, self.context_length)

    def __len__(self) -> int:
        return self.inverse.shape[0]


@torch.compiler.disable
def pack(tokens: Tensor, *, vocab_size: int, context_length: int) -> PackedText:
    """Pack padded token rows.

    tokens: integer [n, l], l <= context_length, ids in [0, vocab_size). A caption ends at the first occurrence of its
    row's largest id (open_clip's "argmax" pooling: the end-of-text token is the largest of the vocabulary); what
    follows is dropped. Rows without padding, and n = 0, are fine.

    One device-to-host copy, of n + 2 numbers. Raises TypeError for a wrong dtype, ValueError for a wrong shape, a row
    longer than the context or an id outside the vocabulary.
    """
    _check_shape(tokens, context_length)
    count = tokens.shape[0]
    device = tokens.device
    if count == 0:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return PackedText(none, none, torch.zeros(1, dtype=torch.int32, device=device), none, none, (), context_length)
    lengths, order = torch.sort(tokens.argmax(dim=1) + 1, stable=True)
    smallest, largest, *sizes = torch.cat([torch.stack([tokens.min(), tokens.max()]).long(), lengths]).tolist()
    if smallest < 0 or largest >= vocab_size:
        raise value_error(
            "tokens",
            got=f"an id {smallest if smallest < 0 else largest}",
            want=f"ids in [0, {vocab_size})",
            fix="use the tokenizer of this model: clipkit.get_tokenizer(name)",
        )
    ends = lengths.cumsum(0)
    total = sum(sizes)
    row = torch.repeat_interleave(torch.arange(count, device=device), lengths, output_size=total)
    positions = torch.arange(total, device=device) - (ends - lengths)[row]
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(count, device=device)
    return PackedText(
        ids=tokens[order[row], positions].long(),
        positions=positions,
        cu_seqlens=torch.nn.functional.pad(ends, (1, 0)).int(),
        last=ends - 1,
        inverse=inverse,
        groups=_runs(sizes),
        context_length=context_length,
    )


def _runs(sizes: list[int]) -> tuple[tuple[int, int], ...]:
    """(value, how many) of each run of equal numbers."""
    runs: list[tuple[int, int]] = []
    for size in sizes:
        if runs and runs[-1][0] == size:
            runs[-1] = (size, runs[-1][1] + 1)
        else:
            runs.append((size, 1))
    return tuple(runs)


def _check_shape(tokens: Tensor, context_length: int) -> None:
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise type_error(
            "tokens", got=tokens.dtype, want="token ids, int64 or int32", fix="pass what the tokenizer returns"
        )
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise value_error(
            "tokens",
            got=f"shape {tuple(tokens.shape)}",
            want="[n, length]",
            fix="one caption a row, also for a single one",
        )
    if tokens.shape[1] > context_length:
        raise value_error(
            "tokens",
            got=f"rows of {tokens.shape[1]} ids",
            want=f"at most {context_length}, the model's context length",
            fix="tokenize with context_length=model.config.text.context_length",
        )
