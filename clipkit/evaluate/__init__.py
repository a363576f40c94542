# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification and image-text retrieval of a trained model, sharded over ranks, exactly counted."""

from __future__ import annotations

from clipkit.evaluate.embed import ImageEmbeddings, embed_images, embed_texts
from clipkit.evaluate.ranking import chance_level, nearest, retrieval
from clipkit.evaluate.run import EmbeddedSet, embed_retrieval_set, evaluate_run, retrieval_metrics
from clipkit.evaluate.zeroshot import text_classifier, zero_shot

__all__ = [
    "EmbeddedSet",
    "ImageEmbeddings",
    "chance_level",
    "embed_images",
    "embed_retrieval_set",
    "embed_texts",
    "evaluate_run",
    "nearest",
    "retrieval",
    "retrieval_metrics",
    "text_classifier",
    "zero_shot",
]
