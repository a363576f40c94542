# SPDX-License-Identifier: Apache-2.0
"""Towers under 16-bit autocast: features and gradients near fp32's, nothing overflows, features of unit length."""

import pytest
import torch

from clipkit.encoders import create_model
from tests.encoders.naive import padded_tokens

PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = padded_tokens([3, 77, 9, 1], 77)


def _results(dtype, scale, gain):
    torch.manual_seed(0)
    model = create_model("vit-tiny-32px", **{"vision.patch_dropout": 0.5, "text.vocab_size": 600}).train()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.weight.mul_(gain)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        outputs = model(PIXELS, TOKENS)
    image, text = outputs["image_features"].float(), outputs["text_features"].float()
    loss = torch.nn.functional.cross_entropy(10 * image @ text.T, torch.arange(4))
    (scale * loss).backward()
    gradients = torch.cat([p.grad.flatten() / scale for p in model.parameters() if p.grad is not None])
    return image.detach(), text.detach(), gradients


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1024.0), (torch.bfloat16, 1.0)])
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_features_and_gradients_are_near_full_precision(dtype, scale, gain):
    """gain: of every LayerNorm, so that attention's logits and the residual stream grow large."""
    for found, exact in zip(_results(dtype, scale, gain), _results(None, 1.0, gain), strict=True):
        assert found.isfinite().all()
        assert (found - exact).norm() < 16 * gain * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_have_unit_length(dtype):
    with torch.autocast("cpu", dtype=dtype):
        outputs = create_model("vit-tiny-32px", **{"text.vocab_size": 600})(PIXELS, TOKENS)
    for name in ("image_features", "text_features"):
        lengths = outputs[name].float().norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(4), rtol=0, atol=2 * torch.finfo(dtype).eps)
