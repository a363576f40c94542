# SPDX-License-Identifier: Apache-2.0
"""How far each loss and its gradients are from float64 on the same rounded inputs, beside plain torch and open_clip.

    TRITON_INTERPRET=1 python -m bench.numerics      # measures, writes bench/results/ and docs/numerics.md
    python -m bench.numerics --text RESULT           # only the document of a result file

Nothing here depends on how busy the machine is. With TRITON_INTERPRET=1 the Triton kernels are simulated on the CPU, in
fp32 and fp16; on a card they run themselves.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import record
from bench.numerics_text import DOCUMENT, ROUNDED, document
from bench.peers import import_peer
from bench.peers.open_clip import PEER as OPEN_CLIP
from clipkit.engine import dispatch
from tests.reference import naive
from tests.reference.cases import CASES, Call, Case, value_and_gradients

COMMAND = "TRITON_INTERPRET=1 python -m bench.numerics"
ROWS, WIDTH = 130, 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEVELS = (18.0, 5.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Values of CLIP's loss that the pairs are moved to, from opposed to learned."""
LEVEL_SCALE = 50.0
SCALES = (1.0, 10.0, 100.0, 200.0)

Features = tuple[Tensor, Tensor, float]
"""Image and text [N, d] in float64 and the scale."""


# Seeds 3 to 7 make teachers and classes of the families: pairs of the same seed would be their own teacher.
def at_level(loss: float) -> Features:
    """Pairs whose CLIP loss is `loss`: each text moved towards its image, or away from it, by bisection."""
    image, noise = naive.unit(ROWS, WIDTH, 1), naive.unit(ROWS, WIDTH, 2)

    def moved(pull: float) -> Tensor:
        return torch.nn.functional.normalize((1 - abs(pull)) * noise + pull * image, dim=1)

    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(naive.clip(image, moved(middle), LEVEL_SCALE)) > loss:
            low = middle
        else:
            high = middle
    return image, moved(high), LEVEL_SCALE


def at_scale(scale: float) -> Features:
    """Pairs with a third of what belongs together: a loss near 1 at scale 100."""
    image, noise = naive.unit(ROWS, WIDTH, 13), naive.unit(ROWS, WIDTH, 14)
    return image, torch.nn.functional.normalize(0.4 * image + noise, dim=1), scale


def in_a_cone(outliers: bool) -> Features:
    """All features within a narrow cone, as an untrained model gives them; outliers are turned to the other side."""
    axis = torch.eye(WIDTH, dtype=torch.float64)[0]
    image, text = (
        torch.nn.functional.normalize(axis + 0.3 * naive.unit(ROWS, WIDTH, seed), dim=1) for seed in (15, 16)
    )
    if outliers:
        image[::37] *= -1
    return image, text, 100.0


def data() -> Iterator[tuple[str, str, Features]]:
    """(kind, label, features) of all data sets."""
    for level in LEVELS:
        yield "level", f"{level:g}", at_level(level)
    for scale in SCALES:
        yield "scale", f"{scale:g}", at_scale(scale)
    yield "shape", "cone", in_a_cone(outliers=False)
    yield "shape", "cone with outliers", in_a_cone(outliers=True)


def case_inputs(case: Case, features: Features, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The family's inputs with these features in the place of its own, rounded to `dtype`."""
    image, text, scale = features
    inputs, constants = case.make(ROWS, WIDTH, dtype)
    own = {"a": image, "b": text, "x": image}
    for name, value in own.items():
        if name in inputs:
            inputs[name] = value.to(dtype)
    if "s" in inputs:
        inputs["s"] = torch.tensor(scale, dtype=inputs["s"].dtype)
    return inputs, constants


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float | None]:
    """Loss error (relative) and the largest relative error of a feature gradient; None for what is not finite."""
    loss = float(exact["loss"])
    assert loss > 1e-9, "float64's own cancellation would show"
    towers = [name for name in exact if exact[name].ndim == 2]
    gradients = [float((found[n].double() - exact[n]).norm() / exact[n].norm()) for n in towers]
    figures = {
        "loss": abs(float(found["loss"].double()) - loss) / abs(loss),
        "gradient": max(gradients, key=lambda error: math.inf if math.isnan(error) else error),
    }
    return {name: float(f"{value:.2e}") if math.isfinite(value) else None for name, value in figures.items()}


def backends(dtype: torch.dtype, device: torch.device) -> list[str]:
    """Those that serve `dtype` on `device` and have sweeps of the losses."""
    name = str(dtype).removeprefix("torch.")
    served = [s for s in dispatch.report() if s.device == device.type and name in s.dtypes]
    return [status.name for status in served if "exponential_products" in status.sweeps]


def ways(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Call]:
    """Our backends and the peers that have this loss."""

    def forced(backend: str) -> Call:
        return lambda **values: case.ours(**values, backend=backend)

    calls: dict[str, Call] = {f"clipkit:{name}": forced(name) for name in backends(dtype, device)}
    calls["torch"] = case.naive
    host = _host(case.name)
    return calls | ({"open_clip": host} if host else {})


def _host(name: str) -> Call | None:
    """open_clip's module for this loss, where it imports."""
    try:
        losses = import_peer("open_clip.loss")
    except Exception:
        return None
    modules: dict[str, Callable[..., Tensor]] = {
        "clip": lambda a, b, s: losses.ClipLoss()(a, b, s),
        "siglip": lambda a, b, s, bias: losses.SigLipLoss()(a, b, s, bias),
    }
    return modules.get(name)


def measure(device: torch.device, sets: list[tuple[str, str, Features]], cases: list[Case]) -> list[dict[str, Any]]:
    """A row for each family, data set and dtype: the exact loss and the errors of each way."""
    rows = []
    for case in cases:
        for kind, label, features in sets:
            for dtype in DTYPES:
                inputs, constants = case_inputs(case, features, dtype)
                exact = value_and_gradients(case.naive, _wide(inputs), _wide(constants))
                here = [{name: value.to(device) for name, value in part.items()} for part in (inputs, constants)]
                found = {}
                for name, call in ways(case, dtype, device).items():
                    got = value_and_gradients(call, *here)
                    found[name] = errors({n: value.cpu() for n, value in got.items()}, exact)
                found[ROUNDED] = errors(_rounded(exact, inputs), exact)
                rows.append(
                    {
                        "family": case.name,
                        "kind": kind,
                        "data": label,
                        "dtype": str(dtype).removeprefix("torch."),
                        "loss": float(f"{float(exact['loss']):.4g}"),
                        "errors": found,
                    }
                )
        print(f"{case.name}: done", flush=True)
    return rows


def _rounded(exact: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The exact answer in the types that answers have."""
    return {"loss": exact["loss"].float(), **{name: exact[name].to(value.dtype) for name, value in inputs.items()}}


def _wide(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in values.items()}


def main() -> None:
    """Measure, record, write the document; or only the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--text", type=Path, metavar="RESULT", help="only write the document of this result file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write both here, not into the checkout")
    options = parser.parse_args()
    path = options.text
    if path is None:
        torch.set_num_threads(1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        cases = [case for case in CASES if case.name in options.families]
        rows = measure(device, list(data()), cases)
        body = {"N": ROWS, "d": WIDTH, "open_clip": OPEN_CLIP.version, "rows": rows}
        path = record.write("numerics", COMMAND, body, folder=options.out or record.RESULTS)
        print(f"wrote {path}")
    target = options.out / DOCUMENT.name if options.out else DOCUMENT
    target.write_text(document(json.loads(path.read_text(encoding="utf-8")), path), encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
