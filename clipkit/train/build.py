# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a session that can start: data, model, optimizer, and every early check."""

from __future__ import annotations

import dataclasses
import glob
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from clipkit.errors import value_error
from clipkit.recipes import BaseRecipe, create_recipe
from clipkit.train.checkpoint import CheckpointStore
from clipkit.train.compile import compile_blocks
from clipkit.train.config import Config
from clipkit.train.float8 import convert_to_float8
from clipkit.train.initialise import check_init, initialise
from clipkit.train.metrics import check_trackers
from clipkit.train.optimizers import build_optimizer
from clipkit.train.parallelize import wrap
from clipkit.train.precision import Precision, emulated_on_cpu
from clipkit.train.runtime import Runtime
from clipkit.train.session import Session
from clipkit.train.step import TrainStep

if TYPE_CHECKING:
    from clipkit.data import Dataset

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
_BUILT_SETS = ("emoji", "icons", "stamps")


def build_session(config: Config, runtime: Runtime, run_dir: Path, *, resuming: bool = False) -> Session:
    """Everything for a run at step 0. Nothing is written.

    Args:
        resuming: a checkpoint's weights come next, so `model.init` is left alone: its files may have gone.

    Raises:
        FileNotFoundError: data that are not there, with the command that builds them.
        ValueError: settings that do not fit the data, the model or the number of processes.
    """
    from clipkit.data import GlobalOrder, ImageTransform, Loader, get_tokenizer

    check_trackers(config.train.trackers)
    check_sources(config)
    if not resuming:
        check_init(config.model.init)
    dataset = _open(config)
    train = config.train
    _check_sizes(config, len(dataset), runtime)
    recipe = create_recipe(config)
    order = GlobalOrder(len(dataset), train.global_batch, train.seed)
    recipe.prepare(samples=len(dataset), fingerprint=dataset.fingerprint, steps_per_epoch=order.steps_per_epoch)
    torch.manual_seed(train.seed)
    module = recipe.build()
    model: Any = recipe.model(module)
    init_report = None if resuming else initialise(model, config.model.init, runtime)
    tokenizer = get_tokenizer(model.config)
    vision = model.config.vision
    loader = Loader(
        dataset,
        order,
        rank=runtime.rank,
        world_size=runtime.world_size,
        tokenizer=tokenizer,
        transform=ImageTransform(
            vision.image_size, vision.mean, vision.std, train=True, **dataclasses.asdict(config.data.augment)
        ),
        workers=config.data.workers,
        caption_tags=config.data.tags,
        seed=train.seed,
        pin_memory=runtime.device.type == "cuda",
    )
    steps = train.steps if train.steps is not None else (train.epochs or 0) * order.steps_per_epoch
    return Session(
        config=config,
        runtime=runtime,
        run_dir=run_dir,
        recipe=recipe,
        loader=loader,
        tokenizer=tokenizer,
        train_step=build_step(config, runtime, recipe, module, steps),
        fingerprint=dataset.fingerprint,
        samples=len(dataset),
        steps_per_epoch=order.steps_per_epoch,
        total_steps=steps,
        init_report=init_report,
        store=CheckpointStore(run_dir / CHECKPOINTS, runtime, keep_last=train.keep_last, asynchronous=train.async_save),
    )


def build_step(config: Config, runtime: Runtime, recipe: BaseRecipe, module: nn.Module, total_steps: int) -> TrainStep:
    """Put a freshly built module on its device, wrap it, and give it an optimizer."""
    train = config.train
    sharded = train.parallel in ("fsdp2", "hsdp") and runtime.is_distributed
    precision = Precision(train.precision, runtime.device.type, autocast=not sharded)
    if runtime.is_main and runtime.device.type == "cpu":
        _warn_of_emulation(precision)
    module.to(device=runtime.device, dtype=precision.weight_dtype)
    model: Any = recipe.model(module)
    if config.model.grad_checkpointing:
        model.set_grad_checkpointing(True)
    if train.fp8:
        convert_to_float8(model, runtime.device)
    if train.compile:
        compile_blocks(model.blocks())
    module.train()
    wrapped = wrap(
        module,
        model.blocks(),
        mode=train.parallel,
        shards=train.shards,
        runtime=runtime,
        low_dtype=precision.low_dtype,
    )
    recipe.bind(wrapped, runtime.group)
    split_over = runtime.group if train.parallel == "zero1" else None
    optimizer = build_optimizer(config.optim, module, model.blocks(), split_over=split_over)
    return TrainStep(recipe, wrapped, optimizer, config, runtime, precision=precision, total_steps=total_steps)


def check_sources(config: Config) -> None:
    """Refuse data that are not there, for training and for every evaluation, before anything long begins.

    Raises:
        FileNotFoundError: names the key, the path, and the command that builds the set where there is one.
    """
    sources = {"data.train": config.data.train}
    for number, entry in enumerate(config.eval.retrieval):
        sources[f"eval.retrieval[{number}].data"] = entry.data
        if entry.captions is not None:
            sources[f"eval.retrieval[{number}].captions"] = entry.captions
    for number, one in enumerate(config.eval.zero_shot):
        sources[f"eval.zero_shot[{number}].data"] = one.data
        for key, listed in (("classes", one.classes), ("templates", one.templates)):
            if isinstance(listed, str):
                sources[f"eval.zero_shot[{number}].{key}"] = listed
    for key, source in sources.items():
        is_pattern = "{" in source or glob.has_magic(source)
        if not is_pattern and not Path(source).exists():
            raise FileNotFoundError(f"{key}: {source} does not exist; {_how_to_get(source)}")


def _how_to_get(source: str) -> str:
    parts = Path(source).parts
    for name in _BUILT_SETS:
        if name in parts:
            folder = Path(*parts[: parts.index(name) + 1])
            return f"build it with: clipkit data {name} --out {folder}"
    return "give a folder of .tar shards, a pattern of them, or a .csv of (path, caption)"


def _open(config: Config) -> Dataset:
    from clipkit.data import open_dataset

    try:
        return open_dataset(config.data.train, tags_key=config.data.tags_key)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data.train: {error}") from None


def _check_sizes(config: Config, samples: int, runtime: Runtime) -> None:
    train = config.train
    if train.global_batch > samples:
        raise value_error(
            "train.global_batch",
            got=train.global_batch,
            want=f"at most the {samples} samples of data.train={config.data.train}",
            fix="lower it, or use a larger set",
        )
    rows = train.global_batch // runtime.world_size
    if rows < train.accumulation:
        raise value_error(
            "train.accumulation",
            got=f"{train.accumulation} micro-batches of {rows} rows per process (global batch "
            f"{train.global_batch} over {runtime.world_size})",
            want="at least one row in each",
            fix="lower train.accumulation, raise train.global_batch or start fewer processes",
        )


def _warn_of_emulation(precision: Precision) -> None:
    if precision.low_dtype and emulated_on_cpu(precision.low_dtype):
        log.warning(
            "train.precision: on this processor torch multiplies %s in plain loops, slower than it multiplies fp32; "
            "set train.precision=fp32",
            precision.low_dtype,
        )
