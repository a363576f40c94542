# SPDX-License-Identifier: Apache-2.0
"""Arguments for the engine's sweeps, and how far a backend's results are from float64: shared by interpreter and GPU
tests.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.interpreter import kernel_cases

DATA = ["unit", "cone", "learned", "huge", "duplicates"]
# Rounding of weights to the inputs' type; fp32 holds what its sums lose.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def towers(data: str, rows: int, columns: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(x, y, scale) of a kind of data; what is said of a pair holds for the pairs (i, i)."""
    x, y = (kernel_cases.unit_features(n, width, torch.float64, seed) for n, seed in ((rows, 0), (columns, 1)))
    scale = 30.0
    shared = min(rows, columns)
    if data == "cone":  # logits near 100 but for outliers near -100
        x, y = (torch.nn.functional.normalize(tower * 0.3 + tower[:1].sign(), dim=1) for tower in (x, x[:1] + y))
        x[::61] *= -1
        y[::67] *= -1
        scale = 100.0
    elif data == "learned":  # pairs nearly equal: losses near zero, weights near minus zero on the diagonal
        y[:shared] = torch.nn.functional.normalize(x[:shared] + 0.05 * y[:shared], dim=1)
        scale = 20.0
    elif data == "huge":  # unnormalised: logits of 1e4
        x, y, scale = 10 * x, 10 * y, 100.0
    elif data == "duplicates":
        x[1::2] = x[: rows // 2 * 2 : 2]
        y[1::2] = y[: columns // 2 * 2 : 2]
    else:
        assert data == "unit", data
    return x.to(dtype), y.to(dtype), torch.tensor(scale)


def exponential(
    data: str,
    rows: int,
    columns: int,
    width: int,
    dtype: torch.dtype,
    *,
    diagonal: int = 0,
    terms: str = "both",
    scaled: bool = False,
) -> dict[str, Any]:
    """CLIP's backward (terms "both") or that of one direction; `scaled`: each line with a scale of its own."""
    x, y, scale = towers(data, rows, columns, width, dtype)
    row_scale, column_scale = (
        line_scales(n, seed) if scaled else torch.ones(n) for seed, n in enumerate((rows, columns))
    )
    logits = scale.double() * (x.double() @ y.double().T)
    across, down = row_scale.double()[:, None] * logits, column_scale.double() * logits
    row, column = across.logsumexp(1), down.logsumexp(0)
    own = torch.arange(rows) + diagonal
    weight = torch.zeros(rows, dtype=torch.float64)
    if terms != "columns":
        weight += torch.expm1(across[torch.arange(rows), own] - row)
    if terms != "rows":
        weight += torch.expm1(down[torch.arange(rows), own] - column[own])
    return {
        "x": x,
        "y": y,
        "scale": scale,
        "row_offset": None if terms == "columns" else row.float(),
        "column_offset": None if terms == "rows" else column.float(),
        "row_scale": row_scale if scaled and terms != "columns" else None,
        "column_scale": column_scale if scaled and terms != "rows" else None,
        "diagonal": diagonal,
        "diagonal_weight": weight.float(),
        "want_x": True,
        "want_y": True,
    }


def line_scales(count: int, seed: int) -> Tensor:
    """A factor between 1/4 and 1 for each line."""
    return 0.25 + 0.75 * torch.rand(count, generator=torch.Generator().manual_seed(seed))


def anchors(
    data: str,
    rows: int,
    columns: int,
    width: int,
    dtype: torch.dtype,
    *,
    diagonal: int | None = 0,
    scaled: bool = False,
) -> dict[str, Any]:
    """FastCLIP's forward of one direction; `scaled`: each anchor with a temperature of its own."""
    x, y, scale = towers(data, rows, columns, width, dtype)
    return {"x": x, "y": y, "scale": scale * line_scales(rows, 3) if scaled else scale, "diagonal": diagonal}


def anchor_errors(arguments: dict[str, Any], *, device: str = "cpu") -> tuple[float, float]:
    """Errors of both anchor statistics over what is allowed: a few roundings of the largest logit for the log-sum-exp,
    and for the mean what that moves it by. Where float64 says -inf and 0, so must they, and where NaN, NaN.
    """
    from clipkit.engine import torch_backend, triton_backend

    x, y, scale = (arguments[name].double() for name in ("x", "y", "scale"))
    want = torch_backend.anchor_statistics(x, y, scale, diagonal=arguments["diagonal"])
    given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    got = triton_backend.anchor_statistics(**given)
    products = (x @ y.T).nan_to_num().abs().max()
    allowed = 1e-6 + 3e-7 * float(products * scale.abs().max())
    lse, mean = (_worst_gap(mine.cpu(), exact) for mine, exact in zip(got, want, strict=True))
    return lse / allowed, mean / (allowed * float(products.clamp_min(1e-30)))


def _worst_gap(mine: Tensor, exact: Tensor) -> float:
    assert mine.dtype == torch.float32
    assert mine.shape == exact.shape
    alike = (mine == exact) | (mine.isnan() & exact.isnan())
    return float(torch.where(alike, 0.0, (mine.double() - exact).abs()).nan_to_num(torch.inf).max())


def sigmoid(
    data: str, rows: int, columns: int, width: int, dtype: torch.dtype, *, diagonal: int = 0, bias: float = -10.0
) -> dict[str, Any]:
    """SigLIP's loss and gradients."""
    x, y, scale = towers(data, rows, columns, width, dtype)
    return {"x": x, "y": y, "scale": scale, "bias": torch.tensor(bias), "diagonal": diagonal, "want_gradients": True}


def labelled(data: str, rows: int, columns: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """A classifier with lists of labels: none in some rows, all in one, some twice, in any order."""
    x, weight, scale = towers(data, rows, columns, width, dtype)
    generator = torch.Generator().manual_seed(2)
    lists = [torch.randint(columns, (i % 4,), generator=generator) for i in range(rows)]
    lists = [torch.cat([one, one[:1]]) for one in lists]
    lists[-1] = torch.randperm(columns, generator=generator)
    offsets = torch.tensor([0, *(len(one) for one in lists)]).cumsum(0)
    bias = torch.randn(columns, generator=generator) - 3
    return {
        "x": (scale * x).to(dtype),
        "weight": weight,
        "bias": bias,
        "target_offsets": offsets,
        "target_indices": torch.cat(lists),
        "want_gradients": True,
    }


def softmax(data: str, rows: int, columns: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """InfoNCE of one direction; the last rows share a key."""
    x, y, scale = towers(data, rows, columns, width, dtype)
    labels = torch.arange(rows).clamp(max=columns - 1)
    return {"x": x, "y": y, "scale": scale, "labels": labels, "want_x": True, "want_y": True}


def results(sweep: str, arguments: dict[str, Any], *, workspace_bytes: int | None = None) -> list[Tensor]:
    """What a sweep of the Triton backend returns on the CPU, its waves as high as a workspace allows."""
    from clipkit.kernels import waves

    from clipkit.engine import triton_backend

    height = waves.wave_rows
    size = waves.DEFAULT_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes

    def bounded(form: Any, **options: Any) -> Any:
        return height(form, **(options | {"workspace_bytes": size}))

    with mock.patch.object(waves, "wave_rows", bounded):
        return [result for result in getattr(triton_backend, sweep)(**arguments) if result is not None]


def relative_errors(sweep: str, arguments: dict[str, Any], *, backend: str, device: str = "cpu") -> list[float | None]:
    """||result - float64|| / ||float64|| of each result of a sweep, None where both leave it out."""
    from clipkit.engine import torch_backend, triton_backend

    module = {"torch": torch_backend, "triton": triton_backend}[backend]
    given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}
    results = zip(getattr(module, sweep)(**given), getattr(torch_backend, sweep)(**wide), strict=True)
    return [_error(mine, exact) for mine, exact in results]


def _error(mine: Tensor | None, exact: Tensor | None) -> float | None:
    if mine is None or exact is None:
        assert mine is None
        assert exact is None
        return None
    assert mine.dtype == torch.float32
    assert mine.shape == exact.shape
    return float((mine.double() - exact).norm() / exact.norm().clamp_min(1e-30))
