# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' CachedMultipleNegativesRankingLoss, both directions: its loss stage on ready embeddings."""

from __future__ import annotations

import torch

from bench.cases import SCALE, Tensors
from bench.peers import Outcome, Step, Variant, import_peer

MINI_BATCH = 1024


def load(loss: str) -> Step:
    """The loss in chunks of rows; it calls backward itself, so gradients land in the embeddings' `.grad`."""
    del loss
    import_peer("sentence_transformers")
    losses = import_peer("sentence_transformers.sentence_transformer.losses")
    util = import_peer("sentence_transformers.util")
    cached = losses.CachedMultipleNegativesRankingLoss(
        torch.nn.Sequential(torch.nn.Identity()),
        scale=SCALE,
        similarity_fct=util.dot_score,  # the embeddings are of unit length already
        mini_batch_size=MINI_BATCH,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )

    def step(tensors: Tensors, direction: str) -> Outcome:
        leaves = [tensors.image.detach().requires_grad_(), tensors.text.detach().requires_grad_()]
        chunks = [[leaf] for leaf in leaves]
        if direction == "fwd":
            with torch.no_grad():
                return Outcome(cached.calculate_loss(chunks))
        value = cached.calculate_loss(chunks, with_backward=True)
        return Outcome(value, tuple(leaf.grad for leaf in leaves if leaf.grad is not None))

    return step


PEER = Variant(
    "sentence-transformers cached",
    ("clip",),
    load,
    distribution="sentence-transformers",
    remark="no gradient of the scale",
)
