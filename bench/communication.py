# SPDX-License-Identifier: Apache-2.0
"""What a step of a contrastive loss sends between ranks: collectives and bytes, counted, beside open_clip's modes.

    python -m bench.communication                    # counts on 2 and 4 gloo ranks; bench/results/ and the document
    python -m bench.communication --text RESULT      # only docs/fastclip-communication.md of a result file

Every function of torch.distributed that moves tensors is wrapped; the bytes are those of a ring, for each rank: an
all-gather receives, and a reduce-scatter sends, K - 1 messages. The counts confirm formulas, by which the published
settings are computed. Nothing here depends on how busy the machine is.
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bench import record
from bench.communication_text import DOCUMENT, document
from bench.peers import import_peer
from bench.peers.open_clip import PEER as OPEN_CLIP

COMMAND = "python -m bench.communication"
RANKS, ROWS, WIDTH, SAMPLES = (2, 4), 16, 64, 1000


class Message(NamedTuple):
    """One collective: torch.distributed's name, where in the step, what it carries, and bytes for each rank."""

    operation: str
    phase: str
    carries: str
    bytes: int


class Setting(NamedTuple):
    """K ranks with b rows each of d numbers; `element` and `payload` are bytes of a feature and of one that travels."""

    ranks: int
    rows: int
    width: int
    element: int = 4
    payload: int = 4


class Volume(NamedTuple):
    """Bytes for each rank in a step: rows of features and their gradients, a few numbers for each sample, both of the
    forward; what the backward sends; and messages of 40 bytes in which ranks agree.
    """

    features: int
    samples: int = 0
    backward: int = 0
    agreement: int = 0


_RING: dict[str, Callable[..., int]] = {
    "all_gather_into_tensor": lambda k, everyone, mine, *_: (k - 1) * mine.nbytes,
    "all_gather_single": lambda k, everyone, mine, *_: (k - 1) * mine.nbytes,
    "all_gather": lambda k, everyone, mine, *_: (k - 1) * mine.nbytes,
    "reduce_scatter_tensor": lambda k, mine, parts, *_: (k - 1) * mine.nbytes,
    "reduce_scatter_single": lambda k, mine, parts, *_: (k - 1) * mine.nbytes,
    "reduce_scatter": lambda k, mine, parts, *_: (k - 1) * mine.nbytes,
    "all_reduce": lambda k, mine, *_: 2 * (k - 1) * mine.nbytes // k,
    "all_to_all_single": lambda k, arriving, mine, *_: (k - 1) * mine.nbytes // k,
    "broadcast": lambda k, mine, *_: mine.nbytes,
    # one of K that make up an all-to-all: over a step every rank receives from the K - 1 others
    "scatter": lambda k, mine, parts=None, *_: 0 if parts else mine.nbytes,
}


class Counter:
    """What crossed ranks while `counting`, as it came."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.phase = "forward"

    @contextmanager
    def counting(self) -> Iterator[Counter]:
        """Wrap torch.distributed's functions, of which clipkit and the peers look up each one when they call it."""
        originals = {name: getattr(dist, name) for name in _RING if hasattr(dist, name)}
        for name, function in originals.items():
            setattr(dist, name, self._wrapped(name, function))
        try:
            yield self
        finally:
            for name, function in originals.items():
                setattr(dist, name, function)

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        def call(*arguments: Any, **options: Any) -> Any:
            given = signature.bind(*arguments, **options)
            size = _RING[name](dist.get_world_size(given.arguments.get("group")), *given.args)
            tensor = next(one for one in given.args if isinstance(one, Tensor))
            self.messages.append(Message(name, self.phase, _carries(tensor), size))
            return function(*arguments, **options)

        return call

    def volume(self) -> Volume:
        """The sum of all messages."""

        def of(phase: str, carries: str) -> int:
            return sum(one.bytes for one in self.messages if one.phase == phase and one.carries == carries)

        backward = sum(one.bytes for one in self.messages if one.phase == "backward")
        return Volume(of("forward", "features"), of("forward", "samples"), backward, of("forward", "agreement"))


def _carries(tensor: Tensor) -> str:
    """Rows as wide as features, what `clipkit.parallel.Layout` exchanges (five integers), or numbers of samples."""
    if tensor.dim() == 2 and tensor.shape[1] >= WIDTH:
        return "features"
    agreement = tensor.dtype == torch.int64 and tensor.dim() == 1 and len(tensor) % 5 == 0
    return "agreement" if agreement else "samples"


# The methods: what a step of each sends, by its definition


def _open_clip(case: Setting, *, backward: bool) -> Volume:
    towers = 2 * (case.ranks - 1) * case.rows * case.width * case.element
    return Volume(towers, backward=towers if backward else 0)


def _clip_loss(case: Setting) -> Volume:
    """One tower gathered, the other's gradient summed and scattered in fp32. Of each sample the largest and the sum of
    its column (all-reduced) and its positive (gathered); two sums of one number.
    """
    others = case.ranks - 1
    rows = others * case.rows * case.width * (case.element + 4)
    samples = others * case.rows * (2 * 2 * 4 + 4) + 2 * (2 * others * 4 // case.ranks)
    return Volume(rows, samples, agreement=40 * others)


def _published(case: Setting, *, state: int) -> Volume:
    """The published code: both towers in fp32, `state` fp32 numbers and two int64 indices of each sample."""
    others = case.ranks - 1
    return Volume(2 * others * case.rows * case.width * 4, others * case.rows * (4 * state + 16))


def _fastclip(case: Setting, *, individual: bool, sharded: bool = False, begun: bool = False) -> Volume:
    """Both towers, 28 bytes of each sample (40 with individual temperatures); from blocks also the ids that are asked
    for and the rows that answer.
    """
    others, columns = case.ranks - 1, 8 if individual else 2
    sample = (40 if individual else 28) + (8 + 4 * columns if sharded else 0)
    features = 2 * others * case.rows * case.width * case.payload
    return Volume(features, others * case.rows * sample, agreement=40 * others * (1 + sharded + begun))


@dataclass(frozen=True)
class Method:
    """A way to compute the loss of a batch that ranks share.

    Attributes:
        expected: its volume by definition.
        make: the loss as a function of image, text and scale; None for what cannot be run here.
        payload: bytes of a feature that travels.
    """

    expected: Callable[[Setting], Volume]
    make: Callable[[int, int], Callable[[Tensor, Tensor, Tensor], Tensor]] | None = None
    payload: int = 4


def _host(**modes: bool) -> Callable[[int, int], Callable[[Tensor, Tensor, Tensor], Tensor]]:
    def make(rank: int, ranks: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        module = import_peer("open_clip.loss").ClipLoss(rank=rank, world_size=ranks, **modes)
        return lambda image, text, scale: module(image, text, scale)

    return make


def _our_clip(rank: int, ranks: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    import clipkit

    return lambda image, text, scale: clipkit.clip_loss(image, text, scale, group=dist.group.WORLD)


def _ours(
    version: str, *, begun: bool = False, **options: Any
) -> Callable[[int, int], Callable[[Tensor, Tensor, Tensor], Tensor]]:
    def make(rank: int, ranks: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        from clipkit.losses import FastCLIPLoss

        loss = FastCLIPLoss(SAMPLES, version, rho=1.0, **options)
        ids = torch.arange(ROWS) + rank * ROWS

        def step(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            if begun:
                loss.begin(ids)
                loss.image_ready(image)
            value = loss(image, text, scale, ids)
            assert isinstance(value, Tensor)
            loss.commit()
            return value

        return step

    return make


METHODS = {
    "open_clip": Method(lambda case: _open_clip(case, backward=False), _host()),
    "open_clip local_loss": Method(lambda case: _open_clip(case, backward=False), _host(local_loss=True)),
    "open_clip gather_with_grad": Method(lambda case: _open_clip(case, backward=True), _host(gather_with_grad=True)),
    "open_clip local_loss, gather_with_grad": Method(
        lambda case: _open_clip(case, backward=True), _host(local_loss=True, gather_with_grad=True)
    ),
    "FastCLIP v0, v1, v3, published code": Method(lambda case: _published(case, state=2)),
    "FastCLIP v2, published code": Method(lambda case: _published(case, state=12)),
    "clipkit.clip_loss": Method(_clip_loss, _our_clip),
    "FastCLIPLoss v3": Method(lambda case: _fastclip(case, individual=False), _ours("v3", placement="replicated")),
    "FastCLIPLoss v3, begun early": Method(
        lambda case: _fastclip(case, individual=False, begun=True), _ours("v3", placement="replicated", begun=True)
    ),
    "FastCLIPLoss v3, sharded": Method(
        lambda case: _fastclip(case, individual=False, sharded=True), _ours("v3", placement="sharded")
    ),
    "FastCLIPLoss v3, bf16 payload": Method(
        lambda case: _fastclip(case, individual=False),
        _ours("v3", placement="replicated", payload=torch.bfloat16),
        payload=2,
    ),
    "FastCLIPLoss v2": Method(lambda case: _fastclip(case, individual=True), _ours("v2", placement="replicated")),
    "FastCLIPLoss v2, sharded": Method(
        lambda case: _fastclip(case, individual=True, sharded=True), _ours("v2", placement="sharded")
    ),
}


def count(method: Method, rank: int, ranks: int) -> tuple[Counter, tuple[Tensor, Tensor]]:
    """One step on this rank: what crossed, and the gradients of its features after the mean over ranks."""
    assert method.make is not None
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    image, text = (tower[mine].clone().requires_grad_() for tower in batch(ranks))
    scale = torch.tensor(10.0, requires_grad=True)
    loss = method.make(rank, ranks)
    counter = Counter()
    with counter.counting():
        value = loss(image, text, scale)
        counter.phase = "backward"
        value.backward()
    assert image.grad is not None
    assert text.grad is not None
    return counter, (image.grad / ranks, text.grad / ranks)


def batch(ranks: int) -> list[Tensor]:
    """The normalised features of all ranks."""
    generator = torch.Generator().manual_seed(0)
    towers = torch.randn(2, ranks * ROWS, WIDTH, generator=generator)
    return list(torch.nn.functional.normalize(towers, dim=2))


def clip_gradients(ranks: int) -> list[Tensor]:
    """What CLIP's gradients of the whole batch are in one process, [N, d] of image and text."""
    image, text = (tower.double().requires_grad_() for tower in batch(ranks))
    logits = 10.0 * image @ text.T
    labels = torch.arange(len(logits))
    cross_entropy = torch.nn.functional.cross_entropy
    ((cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2).backward()
    return [tower.grad for tower in (image, text) if tower.grad is not None]


def _measure(rank: int, folder: str) -> None:
    ranks = dist.get_world_size()
    mine, exact = slice(rank * ROWS, (rank + 1) * ROWS), clip_gradients(ranks)
    rows = []
    for name, method in METHODS.items():
        if method.make is None:
            continue
        counter, gradients = count(method, rank, ranks)
        expected = method.expected(Setting(ranks, ROWS, WIDTH, payload=method.payload))
        row = {
            "method": name,
            "K": ranks,
            "measured": counter.volume()._asdict(),
            "formula": expected._asdict(),
            "messages": [one._asdict() for one in counter.messages],
        }
        if name.startswith(("open_clip", "clipkit.clip_loss")):
            own = torch.cat([tower[mine] for tower in exact])
            found = torch.cat(gradients).double()
            row["gradient"] = {
                "cosine": float(f"{float(torch.cosine_similarity(found.flatten(), own.flatten(), dim=0)):.6f}"),
                "norm": float(f"{float(found.norm() / own.norm()):.6f}"),
            }
        rows.append(row)
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def measure() -> list[dict[str, Any]]:
    """A row for each method and number of ranks, as rank 0 counted it."""
    from tests.parallel.ranks import run_on_ranks

    rows = []
    for ranks in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            run_on_ranks(ranks, _measure, folder)
            rows += json.loads(Path(folder, "rows.json").read_text(encoding="utf-8"))
    return rows


# Published settings: (name, model, b, K)
SETTINGS = [
    *[("medium", "RN50", 128, ranks) for ranks in (4, 8, 16, 32)],
    *[("large", "ViT-B-32", 256, ranks) for ranks in (4, 8, 16, 32)],
    ("xlarge", "ViT-B-16", 320, 16),
]


def settings() -> list[dict[str, Any]]:
    """Every method's volume at the published settings, by the formulas, and what DDP sends for the weights."""
    from clipkit import create_model

    rows = []
    for name, model_name, local, ranks in SETTINGS:
        with torch.device("meta"):
            model: Any = create_model(model_name)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        case = {"setting": name, "model": model_name, "K": ranks, "b": local, "d": model.config.embed_dim}
        volumes = {}
        for method_name, method in METHODS.items():
            volumes[method_name] = method.expected(
                Setting(ranks, local, model.config.embed_dim, payload=method.payload)
            )._asdict()
        weights = 2 * (ranks - 1) * 4 * parameters // ranks
        rows.append({**case, "parameters": parameters, "weights": weights, "volumes": volumes})
    return rows


def main() -> None:
    """Count, record, write the document; or only the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="RESULT", help="only write the document of this result file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write both here, not into the checkout")
    options = parser.parse_args()
    path = options.text
    if path is None:
        body = {"b": ROWS, "d": WIDTH, "open_clip": OPEN_CLIP.version, "settings": settings(), "rows": measure()}
        path = record.write("communication", COMMAND, body, device="cpu", folder=options.out or record.RESULTS)
        print(f"wrote {path}")
    target = options.out / DOCUMENT.name if options.out else DOCUMENT
    target.write_text(document(json.loads(path.read_text(encoding="utf-8")), path), encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
