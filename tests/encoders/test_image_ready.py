# SPDX-License-Identifier: Apache-2.0
"""`image_ready` hands over the image features before the text tower starts, plain and under DDP and FSDP2."""

from __future__ import annotations

import torch
import torch.distributed as dist

from clipkit.train.parallelize import wrap
from clipkit.train.runtime import Runtime
from tests.encoders.naive import padded_tokens, tiny_model
from tests.parallel.ranks import run_on_ranks


def watched_step(model, wrapped, pixels, tokens) -> tuple[list[str], torch.Tensor, dict[str, torch.Tensor]]:
    """One forward and backward through `wrapped`: the order of events, what was handed over, and the outputs."""
    events: list[str] = []
    handed: list[torch.Tensor] = []

    def image_ready(features: torch.Tensor) -> None:
        events.append("image ready")
        handed.append(features)

    hook = model.token_embedding.register_forward_pre_hook(lambda *_: events.append("text starts"))
    outputs = wrapped(pixels, tokens, image_ready=image_ready)
    hook.remove()
    (outputs["image_features"] * outputs["text_features"]).sum().backward()
    (features,) = handed
    return events, features, outputs


def check(model, wrapped, pixels, tokens) -> None:
    events, features, outputs = watched_step(model, wrapped, pixels, tokens)
    assert events == ["image ready", "text starts"]
    assert not features.requires_grad
    assert torch.equal(features.to(outputs["image_features"].dtype), outputs["image_features"])
    assert all(p.grad is not None for n, p in model.named_parameters() if n != "logit_scale")


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 3, 16, 16), padded_tokens([4, 24, 9], 24)


def test_image_features_are_handed_over_before_the_text_tower_starts():
    model = tiny_model(torch.float32)
    check(model, model, *inputs())
    untouched: list[torch.Tensor] = []
    assert "image_features" not in model(tokens=inputs()[1], image_ready=untouched.append)
    assert not untouched


def through_every_wrapper(rank: int) -> None:
    runtime = Runtime(rank=rank, world_size=2, group=dist.group.WORLD)
    for mode, low_dtype in (("ddp", None), ("fsdp2", None), ("fsdp2", torch.bfloat16)):
        model = tiny_model(torch.float32)
        check(model, wrap(model, model.blocks(), mode=mode, runtime=runtime, low_dtype=low_dtype), *inputs())


def test_it_reaches_the_model_through_ddp_and_fsdp2():
    run_on_ranks(2, through_every_wrapper)
