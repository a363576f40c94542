# SPDX-License-Identifier: Apache-2.0
"""What a run is: nested frozen dataclasses, read from YAML, immutable after start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipkit.errors import value_error
from clipkit.optim import TowerOptions
from clipkit.train.typed import FrozenDict, assign, from_plain, to_plain

Precision = Literal["fp32", "bf16", "fp16", "fp64"]


@dataclass(frozen=True)
class RecipeConfig:
    """Which training method: a module of `clipkit.recipes`, and the options that only it understands."""

    name: str = "contrastive"
    options: Mapping[str, Any] = field(default_factory=FrozenDict)


@dataclass(frozen=True)
class InitConfig:
    """Towers to start from, each out of another model; see `clipkit.load_towers`.

    `image`, `text`: a checkpoint file, a folder of `clipkit train` (its newest checkpoint) or of `clipkit export`.
    `skip`: patterns of names that start anew or stay behind; null stands for the published list. A run that goes on
    from a checkpoint of its own needs none of them any more.
    """

    image: str | None = None
    text: str | None = None
    skip: tuple[str, ...] | None = None
    resize: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """Which model. `overrides` are dotted keys of its configuration, such as `vision.patch_dropout: 0.5`.

    It starts from `pretrained`, a checkpoint of the whole model, or by `init` from towers of several, or anew.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=FrozenDict)
    pretrained: str | None = None
    init: InitConfig = field(default_factory=InitConfig)
    grad_checkpointing: bool = False


@dataclass(frozen=True)
class LossConfig:
    """Which loss; `weights` multiplies the recipe's named losses in the total (default 1 each)."""

    name: Literal["clip", "siglip"] = "clip"
    label_smoothing: float = 0.0
    weights: Mapping[str, float] = field(default_factory=FrozenDict)


@dataclass(frozen=True)
class AugmentConfig:
    """How training pictures vary; see `clipkit.data.ImageTransform`."""

    resize: Literal["crop", "squash"] = "crop"
    crop_scale: tuple[float, float] | None = None
    shift: int | None = None
    flip: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    colour: float = 0.0


@dataclass(frozen=True)
class DataConfig:
    """Training pairs. `tags: [lo, hi]` appends that many of a sample's tags to its caption, chosen anew each epoch."""

    train: str
    workers: int = 0
    tags: tuple[int, int] = (0, 0)
    tags_key: str = "tags"
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class RetrievalSet:
    """A set to search in: pictures of `data`, against the captions of the file `captions` (or the set's own)."""

    name: str
    data: str
    captions: str | None = None


@dataclass(frozen=True)
class ZeroShotSet:
    """A set to classify: `classes` and `templates` are lists, or text files with one per line."""

    name: str
    data: str
    classes: str | tuple[str, ...]
    templates: str | tuple[str, ...] | None = None


@dataclass(frozen=True)
class EvalConfig:
    """When and on what to evaluate; `every_steps: 0` is at the end only."""

    every_steps: int = 0
    retrieval: tuple[RetrievalSet, ...] = ()
    zero_shot: tuple[ZeroShotSet, ...] = ()
    batch_size: int = 256


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over steps: linear warm-up, then a cosine (or nothing) down to `lr_min`."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    lr_min: float = 0.0


@dataclass(frozen=True)
class ScaleScheduleConfig:
    """The rule for `optim.lr_scale`, the rate of logit_scale and logit_bias.

    * shared: `optim.schedule`, whatever it is.
    * cosine: the cosine, with warm-up and `lr_min` of `optim.schedule`.
    * constant: the peak, without warm-up.
    * step_thresh: FastCLIP v3's; the peak, times `factor` while tau = exp(-logit_scale) <= `threshold`, decided anew at
      each step; without warm-up.
    """

    name: Literal["shared", "cosine", "constant", "step_thresh"] = "shared"
    threshold: float = 0.03
    factor: float = 1 / 3


@dataclass(frozen=True)
class MuonConfig:
    """Muon for the matrices inside the blocks; see `clipkit.optim.Muon`. `lr` is their peak rate."""

    lr: float = 0.02
    momentum: float = 0.95
    iterations: int = 5


@dataclass(frozen=True)
class LambConfig:
    """LAMB's rule for trust ratios; see `clipkit.optim.Lamb`. FastCLIP's is nvlamb, EVA-CLIP's DeepSpeed's."""

    trust: Literal["nvlamb", "paper", "deepspeed"] = "nvlamb"


@dataclass(frozen=True)
class LionConfig:
    """Lion's two averages: of the update, whose sign is taken, and of the momentum that is kept."""

    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class SgdConfig:
    """SGD's momentum. logit_scale and logit_bias have none, as in FastCLIP's comparison of optimizers."""

    momentum: float = 0.9
    nesterov: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer: `betas` and `eps` are those of AdamW, of LAMB and of what Muon leaves to AdamW.

    * adamw: torch's, fused.
    * lamb: `clipkit.optim.Lamb`.
    * lion: w <- (1 - lr wd) w - lr sign(beta1 m + (1 - beta1) g), m <- beta2 m + (1 - beta2) g, by pytorch-optimizer
      (`pip install "clipkit-torch[lion]"`); Chen et al. 2023 use a rate 3 to 10 times below AdamW's.
    * muon: `clipkit.optim.Muon` for the matrices inside the blocks, AdamW for everything else.
    * sgd: torch's, whose weight decay is added to the gradient and so goes through the momentum.

    `lr_scale` is logit_scale's and logit_bias's own peak rate (default: `lr`); `grad_clip` a global norm. `image` and
    `text` are what the towers have of their own, `no_decay` further parameters without weight decay, beside biases,
    other vectors and the scale: see `clipkit.optim.parameter_groups`. The rate in the metrics is the image tower's
    before layer decay.
    """

    name: Literal["adamw", "lamb", "lion", "muon", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    grad_clip: float | None = None
    lr_scale: float | None = None
    image: TowerOptions = field(default_factory=TowerOptions)
    text: TowerOptions = field(default_factory=TowerOptions)
    no_decay: tuple[str, ...] = ()
    lamb: LambConfig = field(default_factory=LambConfig)
    lion: LionConfig = field(default_factory=LionConfig)
    muon: MuonConfig = field(default_factory=MuonConfig)
    sgd: SgdConfig = field(default_factory=SgdConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    scale_schedule: ScaleScheduleConfig = field(default_factory=ScaleScheduleConfig)


@dataclass(frozen=True)
class TrainConfig:
    """The loop. Exactly one of `steps` and `epochs`; `accumulation` micro-batches make one exact global batch.

    (A ResNet's BatchNorm normalises by the micro-batch of one process, whatever the global batch.)
    """

    global_batch: int
    steps: int | None = None
    epochs: int | None = None
    accumulation: int = 1
    precision: Precision = "fp32"
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    compile: bool = False
    seed: int = 0
    save_every: int = 500
    keep_last: int = 2
    async_save: bool = False
    log_every: int = 10
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()


@dataclass(frozen=True)
class OutputConfig:
    """Where the run's folder is."""

    dir: str = "runs/clipkit"


@dataclass(frozen=True)
class Config:
    """One run, whole."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


def load_config(source: str | Path, settings: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `key=value` settings, whose values are YAML too.

    Args:
        source: a path; a name that is no file here is looked for among the recipes installed with clipkit.
        settings: `a.b=c` strings, later ones win.

    Raises:
        FileNotFoundError: no such file here or among the installed recipes.
        ValueError, TypeError: a key or a value that the configuration does not have; the message names it.
    """
    tree = _read_yaml(find_config(source))
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise value_error("--set", got=repr(setting), want="key=value", fix="for example --set optim.lr=0.001")
        assign(tree, Config, key.strip(), _parse_yaml(text, f"--set {key.strip()}"))
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any]) -> Config:
    """A Config from nested plain values, checked as far as is possible without data, model or ranks."""
    config = from_plain(Config, tree)
    _check(config)
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; `parse_config(yaml.safe_load(...))` gives an equal one back."""
    import yaml

    return str(yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True))


def find_config(source: str | Path) -> Path:
    """The file itself, else the one of that name inside the installed `clipkit/recipes`."""
    path = Path(source)
    installed = Path(__file__).resolve().parent.parent / "recipes"
    for candidate in (path, installed / path.name):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(file.name for file in installed.glob("*.yaml")))
    raise FileNotFoundError(
        f"--config: no file {str(source)!r} here, and none of that name ships with clipkit ({shipped})"
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    tree = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise value_error(
            str(path), got=type(tree).__name__, want="sections such as `model:`", fix="see clipkit/recipes"
        )
    return tree


def _parse_yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise value_error(where, got=problem, want="valid YAML", fix="correct the text at that place") from None


def _check(config: Config) -> None:
    """Settings that contradict each other or lie outside their range."""
    train, optim = config.train, config.optim
    _check_init(config.model)
    if (train.steps is None) == (train.epochs is None):
        both = f"steps={train.steps}, epochs={train.epochs}"
        raise value_error("train.steps / train.epochs", got=both, want="exactly one of them", fix="remove or add one")
    at_least: dict[str, tuple[float | None, float]] = {
        "train.global_batch": (train.global_batch, 1),
        "train.steps": (train.steps, 1),
        "train.epochs": (train.epochs, 1),
        "train.accumulation": (train.accumulation, 1),
        "train.save_every": (train.save_every, 0),
        "train.keep_last": (train.keep_last, 1),
        "train.log_every": (train.log_every, 1),
        "data.workers": (config.data.workers, 0),
        "eval.every_steps": (config.eval.every_steps, 0),
        "eval.batch_size": (config.eval.batch_size, 1),
        "optim.lr": (optim.lr, 0),
        "optim.weight_decay": (optim.weight_decay, 0),
        "optim.muon.lr": (optim.muon.lr, 0),
        "optim.muon.iterations": (optim.muon.iterations, 1),
        "optim.schedule.warmup_steps": (optim.schedule.warmup_steps, 0),
        "optim.schedule.lr_min": (optim.schedule.lr_min, 0),
        "optim.lr_scale": (optim.lr_scale, 0),
        "optim.scale_schedule.factor": (optim.scale_schedule.factor, 0),
        "optim.image.lr": (optim.image.lr, 0),
        "optim.image.weight_decay": (optim.image.weight_decay, 0),
        "optim.text.lr": (optim.text.lr, 0),
        "optim.text.weight_decay": (optim.text.weight_decay, 0),
    }
    for name, (value, low) in at_least.items():
        if value is not None and not value >= low:
            raise value_error(name, got=value, want=f"at least {low}", fix="raise it")
    if optim.grad_clip is not None and not optim.grad_clip > 0:
        raise value_error("optim.grad_clip", got=optim.grad_clip, want="more than 0", fix="use null for no clipping")
    for tower, own in (("image", optim.image), ("text", optim.text)):
        if not 0 < own.layer_decay <= 1:
            key = f"optim.{tower}.layer_decay"
            raise value_error(key, got=own.layer_decay, want="above 0 and at most 1", fix="1.0 switches it off")
    averages = {
        "optim.betas": optim.betas,
        "optim.lion.betas": optim.lion.betas,
        "optim.muon.momentum": (optim.muon.momentum,),
        "optim.sgd.momentum": (optim.sgd.momentum,),
    }
    for name, numbers in averages.items():
        if any(not 0 <= number < 1 for number in numbers):
            raise value_error(name, got=", ".join(map(str, numbers)), want="in [0, 1)", fix="0.9 is usual")
    if optim.sgd.nesterov and not optim.sgd.momentum:
        raise value_error(
            "optim.sgd.nesterov", got="true without momentum", want="some momentum", fix="set optim.sgd.momentum=0.9"
        )
    threshold = optim.scale_schedule.threshold
    if not threshold > 0:
        raise value_error(
            "optim.scale_schedule.threshold", got=threshold, want="a temperature above 0", fix="0.03 is FastCLIP's"
        )
    if not 0 <= config.loss.label_smoothing < 1:
        raise value_error("loss.label_smoothing", got=config.loss.label_smoothing, want="in [0, 1)", fix="correct it")
    if config.loss.name == "siglip" and config.loss.label_smoothing:
        raise value_error(
            "loss.label_smoothing",
            got=config.loss.label_smoothing,
            want="0 with loss.name=siglip",
            fix="the sigmoid loss has no smoothing; remove it",
        )
    lo, hi = config.data.tags
    if not 0 <= lo <= hi:
        raise value_error("data.tags", got=[lo, hi], want="0 <= low <= high", fix="use [0, 0] for captions only")
    if train.accumulation > train.global_batch:
        raise value_error(
            "train.accumulation",
            got=train.accumulation,
            want=f"at most train.global_batch={train.global_batch}",
            fix="lower it",
        )
    names = [entry.name for entry in config.eval.retrieval] + [entry.name for entry in config.eval.zero_shot]
    if len(set(names)) != len(names):
        raise value_error("eval", got=f"names {names}", want="a different name for each set", fix="rename one")


def _check_init(model: ModelConfig) -> None:
    """At most one way to start, and no rule for towers that are not given."""
    named = [f"model.init.{tower}" for tower in ("image", "text") if getattr(model.init, tower) is not None]
    if named and model.pretrained is not None:
        raise value_error(
            "model.pretrained",
            got=f"a whole model, beside {' and '.join(named)}",
            want="one of the two",
            fix="remove model.pretrained, or give it as model.init.image and model.init.text",
        )
    if model.init.skip is not None and not named:
        raise value_error(
            "model.init.skip",
            got=", ".join(model.init.skip),
            want="model.init.image or model.init.text beside it",
            fix="add one, or remove it",
        )
