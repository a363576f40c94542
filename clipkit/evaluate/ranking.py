# SPDX-License-Identifier: Apache-2.0
"""Ranks, recalls and nearest neighbours from two sets of features, in chunks: the full score matrix never exists.

The rank of a query is the number of wrong candidates that score at least as high as its best right one: rank 0 is a
hit at 1. Ties are counted against the model (a wrong candidate with exactly the right one's score stands before it),
and so is every NaN, so neither a collapsed encoder nor a diverged one can look good. Scores are dot products in
float64 rounded to float32: rounding hides how a matrix product orders its sums, so that a tie stays a tie, and a
count stays a count, however the chunks and the ranks fall.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.errors import type_error, value_error
from clipkit.evaluate.sharding import Shards

CHUNK = 1024


def retrieval(
    image_features: Tensor,
    text_features: Tensor,
    positives: Tensor | Sequence[Sequence[int]],
    ks: Sequence[int] = (1, 5, 10),
    *,
    group: dist.ProcessGroup | None = None,
    chunk: int = CHUNK,
) -> dict[str, float]:
    """Recall at k, image to text and text to image.

    Args:
        image_features: [n, d] this rank's pictures, L2-normalised; ranks may hold different n, also 0.
        text_features: [m, d] all candidate captions, the same on every rank.
        positives: for each of this rank's pictures the indexes of its right captions: an int tensor [n] (one each) or
            a sequence of sequences. A picture without one is a candidate for captions, but asks nothing itself; a
            caption without a picture likewise.
        ks: depths.
        group: the ranks that share the pictures; None is this process alone.
        chunk: rows and columns of a score block: chunk² numbers exist at a time. The result does not depend on it.

    Returns:
        `{direction}/R@{k}` and `{direction}/chance_R@{k}` as fractions of 1, `{direction}/queries`,
        `{direction}/candidates`; the direction is `image_to_text` or `text_to_image`. Equal on every rank and on
        every world size. A recall over no queries is NaN.

    Raises:
        ValueError, TypeError: on shapes, indexes or depths that do not fit.
    """
    check_features(image_features, text_features)
    check_depths(ks)
    shards = Shards(group)
    images, texts = for_scoring(image_features), for_scoring(text_features)
    pairs = positive_pairs(positives, len(images), len(texts)).to(images.device)
    return {
        **_image_to_text(images, texts, pairs, ks, shards, chunk),
        **_text_to_image(images, texts, pairs, ks, shards, chunk),
    }


def query_ranks(queries: Tensor, candidates: Tensor, pairs: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Rank [n] (int64, 0 is best) of each query's best right candidate; `pairs` is [p, 2]: query, candidate."""
    queries, candidates = for_scoring(queries), for_scoring(candidates)
    pairs = pairs.to(queries.device)
    return _ahead(queries, candidates, pairs, _best_positive(queries, candidates, pairs, chunk), chunk)


def nearest(queries: Tensor, candidates: Tensor, k: int, *, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """The k best candidates of each query: falling scores float32 [n, k] and indexes int64 [n, k].

    Equal scores are ordered by index, NaN scores come last, and k is cut to the number of candidates.
    """
    check_features(queries, candidates)
    check_depths([k])
    queries, candidates = for_scoring(queries), for_scoring(candidates)
    scores_of, indexes_of = [], []
    for rows in _spans(len(queries), chunk):
        scores = queries.new_empty((len(rows), 0), dtype=torch.float32)
        indexes = scores.new_empty((len(rows), 0), dtype=torch.int64)
        for columns in _spans(len(candidates), chunk):
            block = _scores(queries, candidates, rows, columns)
            block = torch.where(block.isnan(), -math.inf, block)
            own = torch.arange(columns.start, columns.stop, device=block.device).expand(len(rows), -1)
            # Earlier candidates stand first in the concatenation, so a stable sort gives ties to the lower index.
            scores, order = torch.cat([scores, block], 1).sort(dim=1, descending=True, stable=True)
            indexes = torch.cat([indexes, own], 1).gather(1, order)[:, :k]
            scores = scores[:, :k]
        scores_of.append(scores)
        indexes_of.append(indexes)
    if not scores_of:
        width = min(k, len(candidates))
        return queries.new_empty((0, width), dtype=torch.float32), queries.new_empty((0, width), dtype=torch.int64)
    return torch.cat(scores_of), torch.cat(indexes_of)


def chance_level(candidates: int, positives: int, k: int) -> float:
    """Probability that a random order of `candidates`, `positives` of them right, has a right one among its first k."""
    miss = 1.0
    for drawn in range(min(k, candidates)):
        miss *= max(candidates - positives - drawn, 0) / (candidates - drawn)
    return 1.0 - miss


def positive_pairs(positives: Tensor | Sequence[Sequence[int]], queries: int, candidates: int) -> Tensor:
    """[p, 2] int64 (query, candidate), sorted by query, each pair once."""
    if isinstance(positives, Tensor):
        if positives.ndim != 1 or positives.is_floating_point() or positives.dtype == torch.bool:
            raise type_error(
                "positives",
                got=f"a {positives.dtype} tensor of shape {list(positives.shape)}",
                want="an integer tensor [n], one candidate per query",
                fix="pass a sequence of sequences if a query has several",
            )
        columns = positives.detach().to("cpu", torch.int64)
        rows = torch.arange(len(columns))
        length = len(columns)
    else:
        length = len(positives)
        rows = torch.tensor([row for row, own in enumerate(positives) for _ in set(own)], dtype=torch.int64)
        columns = torch.tensor([column for own in positives for column in sorted(set(own))], dtype=torch.int64)
    if length != queries:
        raise value_error(
            "positives", got=f"{length} entries", want=f"one per query ({queries})", fix="pass one for each row"
        )
    if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < candidates:
        raise value_error(
            "positives",
            got=f"an index in [{int(columns.min())}, {int(columns.max())}]",
            want=f"indexes in [0, {candidates})",
            fix="index the rows of the candidates' features",
        )
    return torch.stack([rows, columns], dim=1)


def _image_to_text(
    images: Tensor, texts: Tensor, pairs: Tensor, ks: Sequence[int], shards: Shards, chunk: int
) -> dict[str, float]:
    """Pictures are sharded and every rank has every caption: each rank ranks its own queries, and only counts cross."""
    ranks = _ahead(images, texts, pairs, _best_positive(images, texts, pairs, chunk), chunk)
    answers = torch.bincount(pairs[:, 0], minlength=len(images))
    return counted_recalls("image_to_text", ranks, answers, len(texts), ks, shards)


def _text_to_image(
    images: Tensor, texts: Tensor, pairs: Tensor, ks: Sequence[int], shards: Shards, chunk: int
) -> dict[str, float]:
    """Here the candidates are sharded: the best right score is a maximum over ranks, the wrong ones ahead are a sum."""
    swapped = pairs[:, [1, 0]]
    best = shards.maximum(_best_positive(texts, images, swapped, chunk))
    ranks = shards.sum(_ahead(texts, images, swapped, best, chunk))
    answers = shards.sum(torch.bincount(swapped[:, 0], minlength=len(texts)))
    total = int(shards.sum(torch.tensor([len(images)], device=images.device)))
    return counted_recalls("text_to_image", ranks, answers, total, ks, Shards(None))


def counted_recalls(
    direction: str, ranks: Tensor, answers: Tensor, candidates: int, ks: Sequence[int], shards: Shards
) -> dict[str, float]:
    """Fractions from integer counts; the histogram of right answers per query makes the chance level exact as well."""
    asked = answers > 0
    hits = shards.sum(torch.stack([((ranks < k) & asked).sum() for k in ks]))
    histogram = shards.sum(torch.bincount(answers, minlength=candidates + 1))
    histogram[0] = 0
    queries = int(histogram.sum())
    result: dict[str, float] = {}
    for k, hit in zip(ks, hits.tolist(), strict=True):
        chance = sum(int(histogram[p]) * chance_level(candidates, int(p), k) for p in histogram.nonzero().flatten())
        result[f"{direction}/R@{k}"] = hit / queries if queries else math.nan
        result[f"{direction}/chance_R@{k}"] = chance / queries if queries else math.nan
    return {**result, f"{direction}/queries": float(queries), f"{direction}/candidates": float(candidates)}


def _best_positive(queries: Tensor, candidates: Tensor, pairs: Tensor, chunk: int) -> Tensor:
    """Best score [n] float32 of each query's right candidates, -inf without one."""
    best = queries.new_full((len(queries),), -math.inf, dtype=torch.float32)
    for part in pairs.split(chunk):
        scores = (queries[part[:, 0]] * candidates[part[:, 1]]).sum(1).float()
        scores = torch.where(scores.isnan(), -math.inf, scores)
        best.scatter_reduce_(0, part[:, 0], scores, "amax")
    return best


def _ahead(queries: Tensor, candidates: Tensor, pairs: Tensor, best: Tensor, chunk: int) -> Tensor:
    """Number [n] int64 of wrong candidates that do not score below `best`."""
    pairs = pairs[pairs[:, 0].argsort(stable=True)]
    row_of_pair = pairs[:, 0].contiguous()
    ahead = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for rows in _spans(len(queries), chunk):
        bounds = torch.tensor([rows.start, rows.stop], device=pairs.device)
        first, last = torch.searchsorted(row_of_pair, bounds).tolist()
        for columns in _spans(len(candidates), chunk):
            own = pairs[first:last]
            own = own[(own[:, 1] >= columns.start) & (own[:, 1] < columns.stop)]
            before = ~(_scores(queries, candidates, rows, columns) < best[rows.start : rows.stop, None])
            before[own[:, 0] - rows.start, own[:, 1] - columns.start] = False
            ahead[rows.start : rows.stop] += before.sum(1)
    return ahead


def _scores(queries: Tensor, candidates: Tensor, rows: range, columns: range) -> Tensor:
    return (queries[rows.start : rows.stop] @ candidates[columns.start : columns.stop].T).float()


def _spans(total: int, chunk: int) -> Iterator[range]:
    for start in range(0, total, chunk):
        yield range(start, min(start + chunk, total))


def for_scoring(features: Tensor) -> Tensor:
    """Features as scores want them: float64, on the CPU where the device has no float64."""
    features = features.detach()
    return (features.cpu() if features.device.type == "mps" else features).double()


def check_features(first: Tensor, second: Tensor) -> None:
    """ValueError unless the two are [n, d] and [m, d]."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise value_error(
            "features",
            got=f"shapes {list(first.shape)} and {list(second.shape)}",
            want="[n, d] and [m, d]",
            fix="embed both with the same model",
        )


def check_depths(ks: Sequence[int]) -> None:
    """ValueError unless every depth is positive and there is one."""
    if not ks or min(ks) < 1:
        raise value_error("k", got=list(ks), want="positive depths", fix="pass for example (1, 5, 10)")
