"""Every setting of a training run, with its default. Recipes in configs/ change what they need.

A recipe is a Python file with `get_config()`, which takes `default_config()` from here, assigns to
some of its fields and returns it. `read` turns the result into the frozen Settings that the rest
of the room sees, or lists everything that is wrong with it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from chopjax.errors import UserError, listing

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class ChopSettings:
    """Which layers go, and when. Without `keep` and `strategy` all stay."""

    keep: str = ""  # the layers that stay, such as "0,13-23"
    strategy: str = ""  # or a name: input, output, middle, both, max-gap, deepest, first
    remove: str = ""  # with strategy: how many layers go, "12", "0.5" or "50%"
    after_steps: int = 0  # train the whole parent so many steps first, for the optimizer's state


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Token stores, as `chopjax prepare` writes them."""

    train: str = ""  # folder; several as "FOLDER=WEIGHT,FOLDER=WEIGHT"
    evaluation: str = ""  # held-out text; none where empty
    batch_size: int = 8  # sequences a step, over all devices
    sequence_length: int = 512  # tokens
    mask_documents: bool = False  # attention stays within a document; the papers' does not


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Just CHOP's recipe (arXiv 2305.14864): Lion with weight decay 1e-4, AdamW with 0.1."""

    name: Literal["lion", "adamw"] = "lion"
    peak_learning_rate: float = 3e-4
    warmup_steps: int = 0  # linear up to the peak …
    final_fraction: float = 0.1  # … then half a cosine down to this part of it at total_steps
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 1e-4  # not on norms and biases
    clip_norm: float = 1.0  # of the whole gradient; 0: no clipping
    momentum_dtype: Dtype = "float32"
    z_loss: float = 0.0  # times the squared log-partition, in the loss; PaLM has 1e-4
    # Leave out an update whose loss is above so many times the running mean, or not a number, and
    # count it. 0: no guard, and a loss that is not a number stops the run.
    spike_factor: float = 0.0


@dataclasses.dataclass(frozen=True)
class ComputeSettings:
    """How to compute."""

    dtype: Dtype = "float32"  # activations and matrix products
    param_dtype: Dtype = "float32"  # parameters, and with them the updates
    remat: Literal["none", "dots", "full"] = "dots"  # what the backward pass computes again
    attention: Literal["auto", "xla", "blocked", "cudnn", "splash"] = "auto"
    microbatches: int = 1  # parts that a batch is worked off in; gradients add up in float32
    loss_chunk: int = 512  # tokens a device whose logits exist at once


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Devices along each mesh axis (train/mesh.py); one may be -1: what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int = 1


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    every: int = 0  # steps; 0: at the end only
    batch_size: int = 0  # sequences; 0: that of training
    max_batches: int = 0  # 0: all of the held-out text


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    every: int = 500  # steps
    keep_last: int = 2  # this many of the newest stay …
    keep_every: int = 0  # … and every one whose step is a multiple of this; 0: none


@dataclasses.dataclass(frozen=True)
class LogSettings:
    tensorboard: bool = True
    wandb: str = ""  # project of Weights & Biases to log to; empty: none
    profile: str = ""  # steps to trace for TensorBoard's profiler, such as "10-12"


@dataclasses.dataclass(frozen=True)
class Settings:
    """A training run."""

    model: str = ""  # Hugging Face folder, hub id, or a folder of `chopjax import`
    revision: str = ""  # of a hub id
    scratch: dict[str, Any] = dataclasses.field(default_factory=dict)  # or a config.json: random
    tokenizer: str = ""  # with scratch: the folder whose tokenizer goes along
    total_steps: int = 1000  # those before the chop included
    seed: int = 0  # of the order of batches, and of random weights
    chop: ChopSettings = ChopSettings()
    data: DataSettings = DataSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    compute: ComputeSettings = ComputeSettings()
    mesh: MeshSettings = MeshSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()


# These may change when a run is resumed. Everything else changes what the run means. Of the data,
# the stores' fingerprints are compared and not where they lie.
MAY_CHANGE = (
    "data.train",
    "data.evaluation",
    "compute.remat",
    "compute.attention",
    "compute.microbatches",
    "compute.loss_chunk",
    "mesh.",
    "evaluation.",
    "checkpoints.",
    "log.",
)


def default_config() -> ConfigDict:
    """The base of every recipe: all settings at their defaults. Unknown fields are refused."""
    return ConfigDict(dataclasses.asdict(Settings()), convert_dict=True).lock()


def read(config: ConfigDict) -> Settings:
    """Check a config and freeze it. Raises UserError that lists everything that is wrong."""
    problems: list[str] = []
    settings = read_as(Settings, config.to_dict(), "", problems)
    if not problems:
        problems = _contradictions(settings)
    if problems:
        raise UserError(f"the config does not hold together:\n{listing(problems)}")
    return settings


def read_as(kind: Any, values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    """`values` as a frozen dataclass of this kind, dataclasses within it included.

    prefix: what stands before a field's name in a message. Adds to `problems` every field that
    does not exist and every value that is not of its field's type.
    """
    types = typing.get_type_hints(kind)
    problems += [f"{prefix}{name}: no such field" for name in values if name not in types]
    fields = {}
    for name, wanted in types.items():
        if name not in values:
            continue
        value, where = values[name], prefix + name
        if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
            fields[name] = read_as(wanted, value, where + ".", problems)
        elif typing.get_origin(wanted) is Literal:
            fields[name] = value
            if value not in typing.get_args(wanted):
                choices = ", ".join(map(str, typing.get_args(wanted)))
                problems.append(f"{where}: {value!r} is not one of {choices}")
        else:
            kind_wanted = typing.get_origin(wanted) or wanted
            if kind_wanted is float and isinstance(value, int):
                value = float(value)
            fields[name] = value
            if type(value) is not kind_wanted:
                problems.append(f"{where}: {value!r} is not of type {kind_wanted.__name__}")
    return kind(**fields)


def _contradictions(settings: Settings) -> list[str]:
    chop, data, optimizer = settings.chop, settings.data, settings.optimizer
    compute, checkpoints = settings.compute, settings.checkpoints
    at_least_one = {
        "total_steps": settings.total_steps,
        "data.batch_size": data.batch_size,
        "data.sequence_length": data.sequence_length,
        "compute.microbatches": compute.microbatches,
        "compute.loss_chunk": compute.loss_chunk,
        "checkpoints.every": checkpoints.every,
        "checkpoints.keep_last": checkpoints.keep_last,
    }
    not_negative = {
        "chop.after_steps": chop.after_steps,
        "optimizer.peak_learning_rate": optimizer.peak_learning_rate,
        "optimizer.warmup_steps": optimizer.warmup_steps,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.clip_norm": optimizer.clip_norm,
        "optimizer.z_loss": optimizer.z_loss,
        "optimizer.spike_factor": optimizer.spike_factor,
        "evaluation.every": settings.evaluation.every,
        "evaluation.batch_size": settings.evaluation.batch_size,
        "evaluation.max_batches": settings.evaluation.max_batches,
        "checkpoints.keep_every": checkpoints.keep_every,
    }
    checks = [
        (bool(settings.model) != bool(settings.scratch), "give either model or scratch"),
        (bool(data.train), "data.train: the token store to train on is missing"),
        (not (chop.keep and chop.strategy), "give either chop.keep or chop.strategy"),
        (bool(chop.strategy) == bool(chop.remove), "chop.strategy and chop.remove go together"),
        (
            not chop.after_steps or bool(chop.keep or chop.strategy),
            "chop.after_steps: there is no chop; give chop.keep or chop.strategy",
        ),
        (
            chop.after_steps < settings.total_steps,
            f"chop.after_steps is {chop.after_steps}: not below total_steps",
        ),
        (
            not settings.scratch or bool(settings.tokenizer),
            "tokenizer: with scratch, the folder of the tokenizer is needed",
        ),
        (
            data.batch_size % compute.microbatches == 0,
            f"data.batch_size {data.batch_size}: not a multiple of compute.microbatches",
        ),
        (
            optimizer.warmup_steps <= settings.total_steps,
            f"optimizer.warmup_steps {optimizer.warmup_steps}: more than total_steps",
        ),
        (0 <= optimizer.b1 < 1 and 0 <= optimizer.b2 < 1, "optimizer.b1 and b2 lie in [0, 1)"),
        (0 <= optimizer.final_fraction <= 1, "optimizer.final_fraction lies in [0, 1]"),
    ]
    return (
        [
            f"{name} is {value}: at least 1 is needed"
            for name, value in at_least_one.items()
            if value < 1
        ]
        + [f"{name} is {value}: not below 0" for name, value in not_negative.items() if value < 0]
        + [message for holds, message in checks if not holds]
    )


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two resolved configs, as far as it changes what the run means."""
    before, after = flat(saved), flat(now)
    names = [name for name in before | after if not name.startswith(MAY_CHANGE)]
    return [
        f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings → {"data.train": value}."""
    result: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result
