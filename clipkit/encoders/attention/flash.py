# SPDX-License-Identifier: Apache-2.0
"""The three generations of the flash-attention packages: where each one runs, and its two functions.

Read off flash-attn 2.8.3 (`flash_attn`; its source distribution also holds generation 3, `flash_attn_interface`) and
flash-attn-4 4.0.0b36 (`flash_attn.cute`). They agree on layouts, [n, tokens, heads, width] or [T, heads, width], and on
the keywords below, not on the order of arguments nor on whether the log-sum-exps are returned as well.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_MOST_WIDTH = 256


@dataclass(frozen=True)
class FlashPackage:
    """One generation.

    Attributes:
        module: what holds `flash_attn_func` and `flash_attn_varlen_func`. Generation 4 alone makes `flash_attn`
            importable too, hence generation 2's inner module.
        distribution: what to install.
        capabilities: major compute capabilities whose forward and backward it has.
        traced: torch.compile can look through it (its kernels are registered operators with shape functions).
    """

    module: str
    distribution: str
    capabilities: tuple[int, ...]
    traced: bool

    def obstacle(self, device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
        """Why it cannot serve such tensors here, or None. It is imported only where nothing else speaks against it."""
        if device.type != "cuda":
            return "needs a CUDA device"
        if dtype not in _SIXTEEN_BIT:
            return "needs float16 or bfloat16"
        if head_width > _MOST_WIDTH or head_width % 8:
            return f"needs heads of a multiple of 8 up to {_MOST_WIDTH}"
        major, minor = torch.cuda.get_device_capability(device)
        if major not in self.capabilities:
            wanted = ", ".join(f"{number}.x" for number in self.capabilities)
            return f"needs compute capability {wanted}; this device has {major}.{minor}"
        if major in (10, 11) and self.module == "flash_attn.cute" and 128 < head_width < 256:
            return "needs heads of at most 128, or of 256, on this device"
        return _import_obstacle(self.module, self.distribution)

    def dense(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Attention without a mask over [n, tokens, heads, width]."""
        return _dense(self)

    def packed(self) -> Callable[..., Tensor]:
        """Attention over [T, heads, width]: (q, k, v, starts of q, of k, longest q, k, causal)."""
        return _packed(self)


@functools.lru_cache(maxsize=8)
def _import_obstacle(module: str, distribution: str) -> str | None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return f"{distribution} is not installed"
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"{distribution} is installed, but does not import: {error}"
    return None


@functools.lru_cache(maxsize=8)
def _dense(package: FlashPackage) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    attend: Any = importlib.import_module(package.module).flash_attn_func

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _output(attend(query, key, value))

    return dense if package.traced else torch.compiler.disable(dense)


@functools.lru_cache(maxsize=8)
def _packed(package: FlashPackage) -> Callable[..., Tensor]:
    attend: Any = importlib.import_module(package.module).flash_attn_varlen_func

    def packed(
        q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, q_most: int, k_most: int, causal: bool
    ) -> Tensor:
        starts = {"cu_seqlens_q": q_starts, "cu_seqlens_k": k_starts}
        return _output(attend(q, k, v, **starts, max_seqlen_q=q_most, max_seqlen_k=k_most, causal=causal))

    return packed if package.traced else torch.compiler.disable(packed)


def _output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


FLASH = {
    "flash_attn_3": FlashPackage("flash_attn_interface", "flash-attn 3", (9,), traced=False),
    "flash_attn_4": FlashPackage("flash_attn.cute", "flash-attn-4", (9, 10, 11), traced=False),
    "flash_attn_2": FlashPackage("flash_attn.flash_attn_interface", "flash-attn", (8, 9, 10, 11, 12), traced=True),
}
"""Best first: generation 3 is written for Hopper, 4 for Blackwell (and Hopper), 2 for what came before."""
