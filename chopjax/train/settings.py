"""Every setting of a training run, with its default. Recipes in configs/ change what they need.

A recipe is a Python file with `get_config()`, which takes `default_config()` from here, assigns to
some of its fields and returns it. `read` turns the result into the frozen Settings that the rest
of the room sees, or lists everything that is wrong with it.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from ml_collections import ConfigDict

from chopjax.errors import UserError, did_you_mean, listing
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.models.compute import Compute, Dtype, Remat
from chopjax.train.after_chop import AfterChopSettings, Gather
from chopjax.train.compiler_options import read_options
from chopjax.train.dimchop_settings import DimChopSettings

PARENT = "parent"  # teacher.model: what the chop was cut from
MOST = 2**53  # of any number: JSON's are exact up to there
MOST_STEPS = 10_000_000  # the learning rates of all steps are held at once
MOST_TOKENS = 2**30  # of a step: what one more step would do as well


@dataclasses.dataclass(frozen=True)
class ChopSettings:
    """Which layers go, and when. Without `keep` and `strategy` all stay."""

    keep: str = ""  # the layers that stay, such as "0,13-23"
    strategy: str = ""  # or by name: input, output, middle, both, max-gap, deepest, first
    remove: str = ""  # with strategy: how many layers go, "12", "0.5" or "50%"
    after_steps: int = 0  # train the whole parent so many steps first, for the optimizer's state


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
    """What the student learns from beside the text. Minimised is, with a = logits and t =
    temperature, (1 - a) next-token loss + a t^2 KL(teacher, student), and each other term times its
    weight: squared differences, means over tokens and width, sums over layers."""

    model: str = ""  # a checkpoint, or "parent": what the chop was cut from; empty: no teacher
    revision: str = ""  # of a hub id: branch, tag or commit
    logits: float = 1.0  # share of the divergence from the teacher, 0 to 1; the text has the rest
    temperature: float = 1.0  # that both models' logits are divided by
    hidden: float = 0.0  # weight of the difference of states behind each layer
    attention: float = 0.0  # weight of the difference of what each layer's attention gives
    embedding: float = 0.0  # weight of the difference of the embedding tables
    mimic: float = 0.0  # weight of the difference of what enters the first layer behind each gap
    # the teacher's layers that teach the student's, one each, such as "0,7-11"; empty: those that
    # the chop recorded, or, of as many layers, the same ones
    map: str = ""
    # of the teacher's weights; same: as compute.dtype, in which both models compute
    dtype: Literal["same", "float32", "bfloat16"] = "same"
    # instead of a model: so many of a teacher's likeliest tokens, stored beside data.train
    top_k: int = 0


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Token stores, as `chopjax prepare` writes them."""

    train: str = ""  # folder; several as "FOLDER=WEIGHT,FOLDER=WEIGHT" (data/lists.py)
    evaluation: str = ""  # held-out text; none where empty
    batch_size: int = 8  # sequences a step, over all devices
    sequence_length: int = 512  # tokens in each
    mask_documents: bool = False  # attention stays within a document; the papers' does not


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Just CHOP's recipe (arXiv 2305.14864): Lion with weight decay 1e-4, AdamW with 0.1."""

    name: Literal["lion", "adamw"] = "lion"  # what makes updates of gradients
    peak_learning_rate: float = 3e-4  # the learning rate after the warm-up
    warmup_steps: int = 0  # steps in which the learning rate rises linearly to its peak
    final_fraction: float = 0.1  # of the peak, which half a cosine leads down to by total_steps
    b1: float = 0.9  # decay of the momentum; of Lion, of what the update is made of
    b2: float = 0.95  # decay of the second moment; of Lion, of its momentum
    weight_decay: float = 1e-4  # not on norms and biases
    clip_norm: float = 1.0  # of the whole gradient; 0: no clipping
    momentum_dtype: Dtype = "float32"  # of the momentum; AdamW's second moment has param_dtype
    z_loss: float = 0.0  # times the squared log-partition, in the loss; PaLM has 1e-4
    # Leave out an update whose loss is above so many times the running mean, or not a number, and
    # count it. 0: no guard, and a loss that is not a number stops the run.
    spike_factor: float = 0.0


@dataclasses.dataclass(frozen=True)
class ComputeSettings(Compute):
    """How to compute: the decoder's part, and what a training step adds to it."""

    dtype: Dtype = "float32"  # activations and matrix products
    remat: Remat = "dots"  # what the backward pass computes again
    param_dtype: Dtype = "float32"  # parameters, and with them the updates
    microbatches: int = 1  # parts that a batch is worked off in; gradients add up in float32
    # tokens a device whose logits exist at once; 0: 512 on processors, 2,048 on accelerators
    loss_chunk: int = 0
    # with microbatches, when a device gets what fsdp has elsewhere of the blocks' kernels: for each
    # layer of each part, or once a step in compute.dtype, which takes room
    gather: Gather = "layer"
    # options that XLA compiles the training step with, "NAME=VALUE,NAME=VALUE"
    compiler_options: str = ""
    after_chop: AfterChopSettings = AfterChopSettings()


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Devices along each mesh axis (models/mesh.py); one may be -1: what the others leave."""

    data: int = -1  # devices that share the batch, each with all parameters
    fsdp: int = 1  # devices that share batch and parameters
    tensor: int = 1  # devices that share each layer's work
    slices: int = 1  # TPU slices that share the batch over the data-centre network


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    every: int = 0  # steps from one evaluation to the next; 0: at the end only
    batch_size: int = 0  # sequences; 0: as many as in training
    max_batches: int = 0  # of held-out text, at most; 0: all


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    every: int = 500  # steps from one checkpoint to the next
    keep_last: int = 2  # so many of the newest checkpoints stay
    keep_every: int = 0  # those whose step is a multiple of this stay, too; 0: none


@dataclasses.dataclass(frozen=True)
class LogSettings:
    tensorboard: bool = True  # write what TensorBoard shows to WORKDIR/tensorboard
    wandb: str = ""  # project of Weights & Biases to log to; empty: none
    profile: str = ""  # steps to trace for TensorBoard's profiler, such as "10-12"


@dataclasses.dataclass(frozen=True)
class Settings:
    """A training run."""

    model: str = ""  # Hugging Face folder, hub id, or a folder of `chopjax import`
    revision: str = ""  # of a hub id: branch, tag or commit
    # instead of a model: what a config.json holds, to begin with random weights
    scratch: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""  # with scratch: the folder whose tokenizer goes along
    from_scratch: bool = False  # random weights in the shape of model and chop
    total_steps: int = 1000  # of training, those before the chop included
    seed: int = 0  # of the order of batches, and of random weights
    # fixed: weights of the blocks' matrices that are zero in the model stay zero (chopjax sparsify)
    masks: Literal["none", "fixed"] = "none"
    dimchop: DimChopSettings = DimChopSettings()
    chop: ChopSettings = ChopSettings()
    teacher: TeacherSettings = TeacherSettings()
    data: DataSettings = DataSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    adapter: AdapterSettings = AdapterSettings()
    compute: ComputeSettings = ComputeSettings()
    mesh: MeshSettings = MeshSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    def after_chop(self) -> Settings:
        """Those of the steps after the chop. They compute the same numbers: of gradients, the
        microbatches' are added up in another order."""
        changes = self.compute.after_chop.given() | {"after_chop": AfterChopSettings()}
        return dataclasses.replace(self, compute=dataclasses.replace(self.compute, **changes))


def default_config() -> ConfigDict:
    """The base of every recipe: all settings at their defaults. Unknown fields are refused."""
    return ConfigDict(dataclasses.asdict(Settings()), convert_dict=True).lock()


def read(config: ConfigDict) -> Settings:
    """Check a config and freeze it. Raises UserError that lists everything that is wrong."""
    return read_settings(Settings, config, _contradictions)


Kind = TypeVar("Kind")


def read_settings(
    kind: type[Kind], config: ConfigDict, contradictions: Callable[[Kind], list[str]]
) -> Kind:
    """A config as frozen settings of this kind. Raises UserError that lists everything that is
    wrong: fields and types; where these are right, what `contradictions` finds."""
    problems: list[str] = []
    settings: Kind = _read_as(kind, fields_of(config), "", problems)
    if not problems:
        problems = contradictions(settings)
    if problems:
        raise UserError(f"the settings contradict each other:\n{listing(problems)}")
    return settings


def changed(settings: Settings, changes: Mapping[str, Any], prefix: str = "") -> Settings:
    """Settings that differ in some fields, nested as they are. Raises UserError that lists those
    that do not exist and values that are not of their field's type.

    prefix: what stands before a field's name in a message.
    """
    problems: list[str] = []
    new: Settings = _read_as(
        Settings, _merged(dataclasses.asdict(settings), changes), prefix, problems
    )
    if problems:
        raise UserError(f"the settings contradict each other:\n{listing(problems)}")
    return new


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        name: _merged(old[name], value)
        for name, value in new.items()
        if isinstance(value, Mapping) and isinstance(old.get(name), Mapping)
    }
    return {**old, **new, **inner}


def fields_of(config: ConfigDict) -> dict[str, Any]:
    """A config as nested dicts. Raises UserError where a field is still to be set."""
    try:
        fields: dict[str, Any] = config.to_dict()
        return fields
    except Exception as error:  # placeholders, references and whatever a recipe put there
        raise UserError(f"the config cannot be read: {error}") from error


def _read_as(kind: Any, values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    """`values` as a frozen dataclass of this kind, dataclasses within it included.

    prefix: what stands before a field's name in a message. Adds to `problems` every field that
    does not exist and every value that is not of its field's type.
    """
    types = typing.get_type_hints(kind)
    problems += [
        f"{prefix}{name}: no such field{did_you_mean(name, types)}"
        for name in values
        if name not in types
    ]
    fields = {}
    for name, wanted in types.items():
        if name not in values:
            continue
        value, where = values[name], prefix + name
        if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
            fields[name] = _read_as(wanted, value, where + ".", problems)
        elif typing.get_origin(wanted) is Literal:
            fields[name] = value
            if value not in typing.get_args(wanted):
                choices = ", ".join(map(str, typing.get_args(wanted)))
                near = did_you_mean(str(value), map(str, typing.get_args(wanted)))
                problems.append(f"{where}: {value!r} is not one of {choices}{near}")
        else:
            kind_wanted = typing.get_origin(wanted) or wanted
            if kind_wanted is float and type(value) is int and abs(value) < MOST:
                value = float(value)
            fields[name] = value
            if type(value) is not kind_wanted:
                problems.append(f"{where}: {value!r} is not of type {kind_wanted.__name__}")
            elif isinstance(value, int | float) and not abs(value) < MOST:
                problems.append(f"{where}: {value!r} is no number that can be meant")
            elif isinstance(value, dict):
                fields[name] = _as_json(value, where, problems)
    return kind(**fields)


def _as_json(value: dict[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """As run.json will hold it; what JSON cannot hold is a problem."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
        if not _has_names(value):
            raise TypeError("keys must be text")
        return plain
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(f"{where}: is not what a config.json can hold ({error})")
        return {}


def _has_names(value: Any) -> bool:
    """Whether all keys are text. JSON would turn the number 1 into "1"."""
    if isinstance(value, Mapping):
        return all(type(key) is str and _has_names(inner) for key, inner in value.items())
    return not isinstance(value, list | tuple) or all(map(_has_names, value))


def _contradictions(settings: Settings) -> list[str]:
    chop, data, optimizer = settings.chop, settings.data, settings.optimizer
    compute, checkpoints, adapter = settings.compute, settings.checkpoints, settings.adapter
    at_least_one = {
        "total_steps": settings.total_steps,
        "data.batch_size": data.batch_size,
        "data.sequence_length": data.sequence_length,
        "compute.microbatches": compute.microbatches,
        "checkpoints.every": checkpoints.every,
        "checkpoints.keep_last": checkpoints.keep_last,
    }
    tokens = max(data.batch_size, settings.evaluation.batch_size) * data.sequence_length
    not_negative = {
        "seed": settings.seed,
        "chop.after_steps": chop.after_steps,
        "optimizer.peak_learning_rate": optimizer.peak_learning_rate,
        "optimizer.warmup_steps": optimizer.warmup_steps,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.clip_norm": optimizer.clip_norm,
        "optimizer.z_loss": optimizer.z_loss,
        "optimizer.spike_factor": optimizer.spike_factor,
        "compute.loss_chunk": compute.loss_chunk,
        "adapter.rank": adapter.rank,
        "adapter.alpha": adapter.alpha,
        "evaluation.every": settings.evaluation.every,
        "evaluation.batch_size": settings.evaluation.batch_size,
        "evaluation.max_batches": settings.evaluation.max_batches,
        "checkpoints.keep_every": checkpoints.keep_every,
    }
    looked_at = {
        "evaluation.every": settings.evaluation.every,
        "checkpoints.every": checkpoints.every,
        "chop.after_steps": chop.after_steps,
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
            not (settings.from_scratch and (settings.scratch or chop.after_steps)),
            "from_scratch: give neither scratch nor chop.after_steps with it",
        ),
        (
            data.batch_size % compute.microbatches == 0,
            f"data.batch_size {data.batch_size}: not a multiple of compute.microbatches",
        ),
        (
            optimizer.warmup_steps <= settings.total_steps,
            f"optimizer.warmup_steps {optimizer.warmup_steps}: more than total_steps",
        ),
        (
            settings.total_steps <= MOST_STEPS,
            f"total_steps is {settings.total_steps}: at most {MOST_STEPS:,}",
        ),
        (
            tokens <= MOST_TOKENS,
            f"data.batch_size x data.sequence_length: {tokens:,} tokens, above {MOST_TOKENS:,}",
        ),
        (0 <= optimizer.b1 < 1 and 0 <= optimizer.b2 < 1, "optimizer.b1 and b2 lie in [0, 1)"),
        (0 <= adapter.dropout < 1, "adapter.dropout lies in [0, 1)"),
        (
            adapter.rank > 0 or adapter == AdapterSettings(),
            "adapter.rank is 0, and other fields of adapter are set: give it a rank of at least 1",
        ),
        (
            adapter.rank == 0 or bool(settings.model and not settings.from_scratch),
            "adapter.rank: adapters go onto a model; random weights have none",
        ),
        (
            settings.masks == "none" or bool(settings.model and not settings.from_scratch),
            "masks: zeros come with a model; random weights have none",
        ),
        (
            settings.masks == "none" or adapter.dropout == 0,
            "masks: adapter.dropout must be 0; behind masks whole matrices are added to each other",
        ),
        (
            settings.masks == "none" or adapter.base == "float",
            "masks: adapter.base must be float; of codes it is not known which stand for zeros",
        ),
        (0 <= optimizer.final_fraction <= 1, "optimizer.final_fraction lies in [0, 1]"),
    ]
    try:
        read_options(compute.compiler_options)
    except UserError as error:
        checks.append((False, str(error)))
    return (
        [
            f"{name} is {value}: at least 1 is needed"
            for name, value in at_least_one.items()
            if value < 1
        ]
        + [f"{name} is {value}: not below 0" for name, value in not_negative.items() if value < 0]
        + [message for holds, message in checks if not holds]
        + compute.after_chop.problems(data.batch_size, bool(chop.keep or chop.strategy))
        + settings.dimchop.problems(
            settings.total_steps, adapter.rank > 0, settings.masks == "fixed", looked_at
        )
        + _teacher_problems(settings)
    )


def _teacher_problems(settings: Settings) -> list[str]:
    asked = settings.teacher
    layers = {"hidden": asked.hidden, "attention": asked.attention, "mimic": asked.mimic}
    weights = layers | {"embedding": asked.embedding}
    more = [name for name, weight in weights.items() if weight > 0]
    alone = dataclasses.replace(TeacherSettings(), model=asked.model, top_k=asked.top_k)
    checks = [
        (0 <= asked.logits <= 1, f"teacher.logits is {asked.logits}: from 0 to 1"),
        (asked.temperature > 0, f"teacher.temperature is {asked.temperature}: above 0"),
        (asked.top_k >= 0, f"teacher.top_k is {asked.top_k}: not below 0"),
        (
            not (asked.model and asked.top_k),
            "teacher.top_k: what a store holds stands for a teacher; give it or teacher.model",
        ),
        (
            bool(asked.model or asked.top_k) or asked == alone,
            "teacher: there is none; give teacher.model, or teacher.top_k",
        ),
        (
            not asked.top_k or not more,
            f"teacher.{', teacher.'.join(more)}: not with teacher.top_k, which has logits alone",
        ),
        (
            not asked.top_k or asked.temperature == 1,
            "teacher.temperature: 1 with teacher.top_k, whose tail is known at 1 alone",
        ),
        (
            not (asked.model or asked.top_k) or bool(asked.logits or more),
            "teacher: all its weights are 0; give teacher.logits or another",
        ),
        (
            not (asked.map and settings.chop.after_steps),
            "teacher.map: not with chop.after_steps; of layers that will go it says nothing",
        ),
        (
            not (asked.embedding and settings.adapter.rank),
            "teacher.embedding: not with adapters, which leave the embedding table as it is",
        ),
        (
            not (asked.model == PARENT and asked.revision),
            "teacher.revision: the parent's is recorded; not with teacher.model parent",
        ),
    ]
    return [
        f"teacher.{name} is {weight}: not below 0" for name, weight in weights.items() if weight < 0
    ] + [message for holds, message in checks if not holds]
