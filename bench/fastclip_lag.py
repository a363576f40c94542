# SPDX-License-Identifier: Apache-2.0
"""How far the estimates u of a trained run are behind: u against the batch's own g under the final weights.

    python -m bench.fastclip_lag --out runs/fastclip

Reads the last checkpoints of the tries of v0 and v1 that bench.fastclip_tries left there, gives the model some
batches of the last epoch again, and compares each pair's stored u with g over the 63 others of its batch now.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import record
from bench.fastclip_methods import METHODS
from clipkit.train.build import CHECKPOINTS, build_session
from clipkit.train.checkpoint import complete_checkpoints
from clipkit.train.config import load_config
from clipkit.train.runtime import Runtime

BATCHES = 12


def main() -> None:
    """Measure every try, print and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fastclip"), help="the folder that the tries are in")
    os.chdir(parser.parse_args().out)  # configurations name their data from here
    rows = []
    for method in ("v0", "v1"):
        for number, name in enumerate(METHODS[method].tries):
            rows.append({"method": method, "try": name, **lag(Path("tries") / f"{method}-{number}")})
            print(rows[-1], flush=True)
    print(record.write("fastclip-lag", "python -m bench.fastclip_lag", {"batches": BATCHES, "rows": rows}))


@torch.no_grad()
def lag(run: Path) -> dict[str, float]:
    """Quantiles over pairs and sides of u / g, and the mean of g / u, the weight that anchors have in the gradient.

    And how well a batch knows g: the spread of g within the pair's batch over g among the pairs of all batches.
    """
    session = build_session(load_config(run / "config.yaml"), Runtime(), run)
    session.restore(complete_checkpoints(run / CHECKPOINTS)[0])
    recipe: Any = session.recipe
    model = session.module.eval()
    batches = session.loader.batches(session.total_steps - session.steps_per_epoch)
    images, texts, estimates, means = [], [], [], []
    for _ in range(BATCHES):
        batch = next(batches).to("cpu")
        found = model(batch.pixels, batch.tokens)
        images.append(found["logit_scale"] * found["image_features"])
        texts.append(found["text_features"])
        estimates.append(recipe.loss.table().held(batch.ids)[:, :2])
        means.append(log_means(images[-1] @ texts[-1].T))
    behind = (torch.cat(estimates) - torch.cat(means)).flatten()
    off = (torch.cat(means) - log_means(torch.cat(images) @ torch.cat(texts).T)).flatten()
    return {
        **_quantiles("u/g", behind),
        "g/u, mean": round(float((-behind).exp().mean()), 3),
        **_quantiles("g/pool's", off),
    }


def _quantiles(name: str, logs: Tensor) -> dict[str, float]:
    cuts = {"10 %": 0.1, "median": 0.5, "90 %": 0.9}
    return {f"{name}, {word}": round(math.exp(float(logs.quantile(q))), 3) for word, q in cuts.items()}


def log_means(logits: Tensor) -> Tensor:
    """log g of both sides [n, 2]: the mean over a line's negatives of exp(negative - positive)."""
    positives, diagonal = logits.diagonal(), torch.eye(len(logits), dtype=torch.bool)
    sides = (
        torch.logsumexp((side - positives[:, None]).masked_fill(diagonal, -math.inf), 1) for side in (logits, logits.T)
    )
    return torch.stack(list(sides), dim=1) - math.log(len(logits) - 1)


if __name__ == "__main__":
    main()
