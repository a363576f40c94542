# SPDX-License-Identifier: Apache-2.0
"""Towers under 16-bit autocast: no further from fp32 than the obvious computation under the same autocast."""

import pytest
import torch
from torch.nn import functional as F

from clipkit.encoders import create_model
from tests.encoders.naive import image_features, padded_tokens, text_features, tiny_model

PIXELS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = padded_tokens([3, 24, 9, 1], 24)


def _results(model, encoders, dtype, scale):
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        image, text = (encode().float() for encode in encoders)
    image, text = F.normalize(image), F.normalize(text)
    loss = F.cross_entropy(10 * image @ text.T, torch.arange(4))
    (scale * loss).backward()
    gradients = [p.grad.flatten() / scale for p in model.parameters() if p.grad is not None]
    return image.detach(), text.detach(), torch.cat(gradients)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1024.0), (torch.bfloat16, 1.0)])
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_features_and_gradients_err_no_more_than_the_obvious_computation(dtype, scale, gain):
    """gain: of every LayerNorm, so that attention's logits and the residual stream grow large."""
    model = tiny_model(torch.float32)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.weight.mul_(gain)
    ours = (lambda: model.encode_image(PIXELS), lambda: model.encode_text(TOKENS))
    naive = (lambda: image_features(model, PIXELS), lambda: text_features(model, TOKENS))
    runs = (_results(model, ours, dtype, scale), _results(model, naive, dtype, scale), _results(model, naive, None, 1))
    for found, obvious, exact in zip(*runs, strict=True):
        assert found.isfinite().all()
        assert (found - exact).norm() < 2 * (obvious - exact).norm() + torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_have_unit_length(dtype):
    model = create_model("vit-tiny-32px", **{"text.vocab_size": 600})
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(torch.randn(4, 3, 32, 32), TOKENS)
    for name in ("image_features", "text_features"):
        lengths = outputs[name].float().norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(4), rtol=0, atol=2 * torch.finfo(dtype).eps)
