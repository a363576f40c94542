# SPDX-License-Identifier: Apache-2.0
"""One training step of a recipe beside the same model as others train it: open_clip's loss, text padded to its context.

    python -m bench.step --config recipes/demo.yaml

Both run the recipe's optimizer on the same batches with the same initial weights, in turns, in one process. The peer's
text tower has this library's weights and computes every position of the context, as open_clip's does.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import record
from bench.peers import import_peer
from clipkit.data import Batch
from clipkit.encoders.text import unit_length
from clipkit.recipes import contrastive
from clipkit.train.build import build_session
from clipkit.train.config import Config, load_config
from clipkit.train.runtime import Runtime

COMMAND = "python -m bench.step"


class PaddedLayout:
    """[n, context, width], causal, every position computed whether a caption reaches it or not."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[n, context, heads, head width]."""
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return attended.transpose(1, 2)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Not asked for: the peer computes every position of every block."""
        raise NotImplementedError


def encode_padded_text(model: Any, tokens: Tensor) -> Tensor:
    """[n, embed_dim], of the same weights, as a transformer over padded text computes it."""
    tokens = torch.nn.functional.pad(tokens, (0, model.context_length - tokens.shape[1]))
    x = model.token_embedding(tokens) + model.positional_embedding
    x = model.ln_final(model.transformer(x, PaddedLayout(), False))
    pooled = x[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    return unit_length(pooled @ model.text_projection)


class PeerRecipe(contrastive.Recipe):
    """The same recipe with padded text and open_clip's loss."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.peer_loss = import_peer("open_clip").ClipLoss()

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Features as the recipe makes them, from padded text."""
        model: Any = self.module
        return {
            "image_features": model.encode_image(batch.pixels, normalize=True),
            "text_features": encode_padded_text(model, batch.tokens),
            "logit_scale": model.logit_scale.exp(),
        }

    def losses(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """open_clip's ClipLoss."""
        return {"contrastive": self.peer_loss(**features)}


def prepare(config: Config, batches: list[Batch] | None) -> tuple[Callable[[], object], Any, list[Batch]]:
    """A function that trains on the next of `batches` (drawn from the recipe's data if None), and its recipe."""
    session = build_session(config, Runtime(), Path(tempfile.mkdtemp()))
    if batches is None:
        batches = [batch.to("cpu") for batch in itertools.islice(session.loader.batches(0), 8)]
    turns = itertools.cycle(enumerate(batches))

    def step() -> None:
        number, batch = next(turns)
        session.train_step(batch, number)

    return step, session.train_step, batches


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="recipes/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    config = load_config(options.config, options.settings)
    ours, our_step, batches = prepare(config, None)
    theirs, their_step, _ = prepare(config, batches)
    peer = PeerRecipe(config)
    peer.bind(their_step.module, None)
    their_step.recipe = peer

    first = batches[0]
    losses = []
    for step in (our_step, their_step):
        torch.manual_seed(0)  # patch dropout draws the same patches
        losses.append(step.recipe.step(first)["contrastive"].detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)  # the same model, data and objective
    seconds = record.interleaved(
        {"clipkit": partial(ours), "padded text + open_clip loss": partial(theirs)}, options.repeats
    )
    ratios = sorted(b / a for a, b in zip(*seconds.values(), strict=True))
    body = {
        "config": options.config,
        "seconds": {name: record.summary(values) for name, values in seconds.items()},
        "peer_over_clipkit": {"median": ratios[len(ratios) // 2], "min": ratios[0], "max": ratios[-1]},
    }
    path = record.write("step", shlex.join([*COMMAND.split(), *sys.argv[1:]]), body)
    for name, values in body["seconds"].items():
        print(f"{name:30s} {1e3 * values['median']:8.1f} ms  [{1e3 * values['min']:.1f}, {1e3 * values['max']:.1f}]")
    print(f"peer / clipkit: {body['peer_over_clipkit']}\nwrote {path}")


if __name__ == "__main__":
    main()
