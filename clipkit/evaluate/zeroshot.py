# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification: class names put into sentence templates, their mean embedding as a class's weight.

After Radford et al. 2021 (CLIP), section 3.1.4: embeddings are normalised, averaged over templates, and normalised
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.errors import value_error
from clipkit.evaluate.embed import embed_texts
from clipkit.evaluate.ranking import (
    CHUNK,
    check_depths,
    check_features,
    counted_recalls,
    for_scoring,
    positive_pairs,
    query_ranks,
)
from clipkit.evaluate.sharding import Shards

DEFAULT_TEMPLATES = ("a picture of {}.", "a drawing of {}.", "a photo of {}.", "{}")


def text_classifier(
    model: Any,
    tokenizer: Any,
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    *,
    batch_size: int = 256,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Class weights [classes, d], L2-normalised float32, on every rank; each template has `{}` where the name goes."""
    if not class_names or not templates:
        raise value_error("class_names, templates", got="an empty list", want="at least one of each", fix="list them")
    for template in templates:
        if template.count("{}") != 1:
            raise value_error(
                "templates", got=repr(template), want="exactly one {}", fix="write '{}' where the name goes"
            )
    sentences = [template.replace("{}", name) for name in class_names for template in templates]
    features = embed_texts(model, tokenizer, sentences, batch_size=batch_size, group=group)
    mean = features.view(len(class_names), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def zero_shot(
    image_features: Tensor,
    labels: Tensor,
    classifier: Tensor,
    ks: Sequence[int] = (1, 5),
    *,
    group: dist.ProcessGroup | None = None,
    chunk: int = CHUNK,
) -> dict[str, float]:
    """Top-k accuracy of `image_features` [n, d] (this rank's) with int `labels` [n] against `classifier` [classes, d].

    Returns `top@{k}` and `chance_top@{k}` as fractions of 1, `queries` and `candidates`; equal on every rank. Ties
    count against the model, as in `clipkit.evaluate.ranking`.
    """
    check_features(image_features, classifier)
    check_depths(ks)
    images, weights = for_scoring(image_features), for_scoring(classifier)
    pairs = positive_pairs(labels, len(images), len(weights)).to(images.device)
    ranks = query_ranks(images, weights, pairs, chunk=chunk)
    counted = counted_recalls("", ranks, torch.ones_like(ranks), len(weights), ks, Shards(group))
    return {key.lstrip("/").replace("R@", "top@"): value for key, value in counted.items()}
