# SPDX-License-Identifier: Apache-2.0
"""`import clipkit` costs torch and at most 50 ms, and brings in no optional package."""

import json
import subprocess
import sys

OPTIONAL = {
    "PIL", "yaml", "safetensors", "tokenizers", "triton", "resvg_py", "open_clip", "torchvision", "timm",
    "transformers", "flash_attn", "tensorboard", "wandb", "pandas", "tqdm", "requests", "pybind11",
}  # fmt: skip


def fresh_python(code):
    """What a snippet prints as JSON in a new interpreter."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def imported_beyond_torch(statement):
    """Top-level packages that a statement imports and torch alone does not."""
    list_modules = "import sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    with_torch = fresh_python(f"import torch\n{list_modules}")
    return set(fresh_python(f"import torch\n{statement}\n{list_modules}")) - set(with_torch)


def test_import_costs_at_most_50_ms_more_than_torch():
    code = "import torch, time\nstart = time.perf_counter()\nimport clipkit\nprint(time.perf_counter() - start)"
    assert min(fresh_python(code) for _ in range(3)) <= 0.050


def test_import_brings_in_no_optional_package():
    assert not imported_beyond_torch("import clipkit") & OPTIONAL


def test_losses_and_kernels_package_bring_in_no_optional_package():
    statement = "import clipkit, clipkit.kernels\nclipkit.clip_loss, clipkit.ClipLoss"
    assert not imported_beyond_torch(statement) & OPTIONAL


def test_help_needs_no_torch():
    code = (
        "import sys, json\nfrom clipkit.cli import build_parser\n"
        "build_parser(None).format_help()\nprint(json.dumps('torch' in sys.modules))"
    )
    assert fresh_python(code) is False
