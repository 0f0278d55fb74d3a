"""Every setting of `chopjax run` and `chopjax sweep`, with its default."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from chopjax.chop.choice import KNOWN
from chopjax.chop.configurations import STRATEGIES
from chopjax.chop.fold_place import KINDS
from chopjax.chop.importance import MEASURED, parse_protect
from chopjax.chop.merge import MERGES
from chopjax.data.prepare import MOST_WORKERS
from chopjax.errors import UserError, did_you_mean
from chopjax.models.compute import Dtype
from chopjax.runs.budget import parse_budget
from chopjax.runs.methods import (
    CHOPPED,
    FULL,
    GROUPS,
    REPAIR,
    Method,
    heal_settings,
    parse_method,
)
from chopjax.runs.methods import KNOWN as METHODS
from chopjax.runs.schedule import ONCE, parse_schedule
from chopjax.runs.strategies import masked_by, parse_strategy
from chopjax.train.settings import Settings as HealSettings
from chopjax.train.settings import fields_of, read_settings

SUITES = sorted(
    path.stem for path in (Path(__file__).parents[1] / "score" / "suites").glob("*.yaml")
)

NOTHING_BEFORE = "compute.after_chop: nothing is trained before the chop; set compute itself"


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Text to heal on and to measure on: .txt or .jsonl files; several separated by commas."""

    train: str = ""  # file to heal on (.txt, .jsonl); several separated by commas
    held_out: str = ""  # likewise, to measure on
    field: str = "text"  # of a JSON line, where the text is
    workers: int = 2  # processes that tokenise


@dataclasses.dataclass(frozen=True)
class CalibrationSettings:
    """What strategies that measure look at."""

    text: str = ""  # files, separated by commas; empty: text.train
    sequences: int = 128  # documents that are drawn
    sequence_length: int = 0  # tokens of each at most; 0: the context length, at most 2048
    batch_size: int = 8  # sequences at once


@dataclasses.dataclass(frozen=True)
class RemovalSettings:
    """Which layers go, and when. A keep list goes before the strategy, so that it can be given on
    top of a recipe."""

    keep: str = ""  # the layers that stay, such as "0,13-23"
    strategy: str = "input"  # any of `chopjax chop`: by name, by measure, or merged
    remove: str = "0.5"  # with strategy: how many layers go, "12", "0.5" or "50%"
    protect: str = "1,1"  # layers that measured strategies leave alone: first and last
    schedule: str = "once"  # or "3x200": in three rounds, 200 steps of healing between them
    after_steps: int = 0  # train the whole parent so many steps first, for the optimizer's state
    # fold what went into what stays, without training, on the calibration text: linear, affine or
    # scalar; empty: not
    repair: str = ""
    ridge: float = 0.1  # with repair: how strongly it is drawn to leaving all as it is


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """What parent, chopped and healed model are measured by: what `chopjax score` takes."""

    tasks: str = ""  # of lm-evaluation-harness, separated by commas; none: perplexity alone
    suite: str = ""  # in place of tasks or beside them, such as "just_chop,generative"
    data_dir: str = ""  # read documents from DIR/TASK/SPLIT.jsonl, not from the hub
    without: str = ""  # tasks to leave out of suite and groups, separated by commas
    text: str = ""  # texts whose perplexity is measured, too; several separated by commas
    include_path: str = ""  # folder of further task files (YAML)
    limit: float = 0.0  # documents of each task and text at most, or a share below 1; 0: all
    num_fewshot: int = -1  # examples before each question; -1: what the task says
    max_length: int = 0  # ids that the network may read; 0: the model's context length
    bos: Literal["auto", "yes", "no"] = "auto"  # special tokens around each text of a task
    dtype: Dtype = "float32"  # of parameters and activations while scoring
    latency_batch: int = 1  # sequences in the forward pass that is timed
    latency_length: int = 0  # tokens in each of them; 0: the context length, at most 512


@dataclasses.dataclass(frozen=True)
class PipelineSettings:
    """Parent → score → chop → score → heal → score → export."""

    model: str = ""  # the parent: a Hugging Face folder or hub id
    revision: str = ""  # of a hub id: branch, tag or commit
    text: TextSettings = TextSettings()
    chop: RemovalSettings = RemovalSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    # what healing may cost, a repair included: FLOPs such as "1e15", or a time such as "0.5h";
    # empty: heal.total_steps
    budget: str = ""
    heal: HealSettings = HealSettings()  # its model, chop and data folders are filled in
    score: ScoreSettings = ScoreSettings()


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """Strategies times numbers of layers: make, perhaps heal, score."""

    model: str = ""  # the parent: a Hugging Face folder or hub id
    revision: str = ""  # of a hub id: branch, tag or commit
    # what is made of the parent, several separated by commas: which layers go, by name or measure,
    # or stay, such as keep:0:17-29, or what else gets smaller, such as sparsegpt:2:4,
    # narrow:mlp=0.5, dimchop:0.5, input:0.25+int4
    strategies: str = ",".join([*STRATEGIES, *MEASURED])
    remove: str = "0.25,0.5,0.75"  # how many layers go: counts, fractions, percentages
    protect: str = "1,1"  # layers that measured strategies leave alone: first and last
    seeds: str = "0"  # of calibration text and healing; each measured point once for each
    healed: bool = False  # heal every point, too, with the same budget (`heal`)
    # in place of `healed`: the ways to make every point good again, of repair, full, lora, qlora,
    # qlora-int8, distill, scratch, repair+full, …; several separated by commas
    methods: str = ""
    # what each of them may cost: FLOPs such as "1e15", or a time such as "0.5h"; empty:
    # heal.total_steps
    budget: str = ""
    keep_healed: bool = False  # leave the healed models on disk
    # repair every point, too, without training (linear, affine or scalar), and heal from both
    repair: str = ""
    ridge: float = 0.1  # with repair: how strongly it is drawn to leaving all as it is
    # held-out documents that every point's model, as a draft for the parent, helps to go on with
    # (speculative decoding): accepted length and speed-up; 0: not measured
    draft: int = 0
    # time a forward pass of every point's model, in turns with the parent's
    # (score.latency_batch, score.latency_length)
    latency: bool = False
    # what of `heal` differs with the method lora, such as lora.optimizer.peak_learning_rate
    lora: dict[str, Any] = dataclasses.field(default_factory=dict)
    qlora: dict[str, Any] = dataclasses.field(default_factory=dict)  # the same of qlora
    distill: dict[str, Any] = dataclasses.field(default_factory=dict)  # the same of distill
    scratch: dict[str, Any] = dataclasses.field(default_factory=dict)  # the same of scratch
    text: TextSettings = TextSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    heal: HealSettings = HealSettings()  # its model, chop and data folders are filled in
    score: ScoreSettings = ScoreSettings()


AnySettings = PipelineSettings | SweepSettings


def pipeline_config() -> ConfigDict:
    """The base of every recipe of `chopjax run`. Unknown fields are refused."""
    return _config(PipelineSettings()).lock()


def sweep_config() -> ConfigDict:
    """The base of every recipe of `chopjax sweep`. Unknown fields are refused."""
    config = _config(SweepSettings())
    # `seeds` and `methods` have them.
    del config.heal.seed, config.heal.from_scratch
    for name in GROUPS:
        config[name] = _unset(config.heal)
    return config.lock()


def _unset(config: ConfigDict) -> ConfigDict:
    """All of its fields, and none of its values."""
    return ConfigDict(
        {name: _unset(v) if isinstance(v, ConfigDict) else None for name, v in config.items()}
    )


def _config(settings: AnySettings) -> ConfigDict:
    config = ConfigDict(dataclasses.asdict(settings), convert_dict=True)
    # What the verbs decide cannot be set.
    del config.heal.model, config.heal.revision, config.heal.scratch, config.heal.tokenizer
    del config.heal.chop, config.heal.data.train, config.heal.data.evaluation
    return config


def read_pipeline(config: ConfigDict) -> PipelineSettings:
    """Check a config and freeze it. Raises UserError that lists everything that is wrong."""
    settings = read_settings(PipelineSettings, config, _pipeline_problems)
    parse_protect(settings.chop.protect)
    return settings


def read_sweep(config: ConfigDict) -> SweepSettings:
    """Check a config and freeze it. Raises UserError that lists everything that is wrong."""
    fields = fields_of(config)
    given = fields | {name: _set(fields.get(name, {})) for name in GROUPS}
    settings = read_settings(SweepSettings, ConfigDict(given), _sweep_problems)
    parse_protect(settings.protect)
    for method in methods_of(settings):
        if method.trained:
            heal_of(settings, method)
    return settings


def _set(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What `_unset` left empty and is not any more."""
    inner = {name: _set(v) if isinstance(v, Mapping) else v for name, v in fields.items()}
    return {name: value for name, value in inner.items() if value not in (None, {})}


def methods_of(settings: SweepSettings) -> list[Method]:
    """Those of every point; the chopped model itself goes without saying."""
    if settings.methods:
        return [parse_method(name) for name in dict.fromkeys(split_list(settings.methods))]
    trained = ("", FULL) if settings.healed else ("",)
    methods = [Method(each, name) for name in trained for each in (False, True)]
    return [m for m in methods if m != CHOPPED and (settings.repair or not m.repaired)]


def heal_of(settings: SweepSettings, method: Method) -> HealSettings:
    """How a method of training differs from `heal`; without `methods` not at all."""
    own = settings.heal
    if settings.methods:
        overrides = {name: getattr(settings, name) for name in GROUPS}
        own = heal_settings(settings.heal, method, overrides)
    if own.compute.after_chop.given():
        raise UserError(f"{method.name}: {NOTHING_BEFORE}")
    return own


class Model(NamedTuple):
    """Where a model is read from."""

    name: str  # folder or hub id
    revision: str | None = None


def parent_of(settings: AnySettings) -> Model:
    return Model(settings.model, settings.revision or None)


def calibration_text(settings: AnySettings) -> str:
    """What strategies that measure look at: files, separated by commas."""
    return settings.calibration.text or settings.text.train


def split_list(text: str) -> list[str]:
    """ "a, b" → ["a", "b"]."""
    return [part.strip() for part in text.split(",") if part.strip()]


# ------------------------------------------------------------------------- Does it hold together?


def _pipeline_problems(settings: PipelineSettings) -> list[str]:
    chop, text = settings.chop, settings.text
    rounds = parse_schedule(chop.schedule) != ONCE
    merges = not chop.keep and chop.strategy in MERGES
    checks = [
        (bool(text.train), "text.train: the text to heal on is missing"),
        (
            bool(chop.keep or (chop.strategy and chop.remove)),
            "chop: give chop.keep, or chop.strategy and chop.remove",
        ),
        (
            bool(chop.keep) or not chop.strategy or chop.strategy in KNOWN,
            f"chop.strategy: {chop.strategy!r} is not one of {', '.join(KNOWN)}"
            + did_you_mean(chop.strategy, KNOWN),
        ),
        (
            bool(chop.after_steps) or not settings.heal.compute.after_chop.given(),
            f"heal.{NOTHING_BEFORE}",
        ),
        (
            not (chop.after_steps and rounds),
            "chop.after_steps and chop.schedule: give one of them",
        ),
        (
            not (chop.after_steps and merges),
            f"chop.after_steps: not with {chop.strategy}, which changes the weights that stay",
        ),
        (
            not (chop.after_steps and chop.repair),
            "chop.after_steps and chop.repair: give one of them",
        ),
        (
            not (settings.budget and (rounds or chop.after_steps)),
            "budget: not with chop.schedule or chop.after_steps, which say numbers of steps",
        ),
        (
            not (settings.heal.from_scratch and (rounds or chop.after_steps or chop.repair)),
            "heal.from_scratch: not with chop.schedule, chop.after_steps or chop.repair",
        ),
        (
            1 <= text.workers <= MOST_WORKERS,
            f"text.workers is {text.workers}: from 1 to {MOST_WORKERS}",
        ),
    ]
    return (
        _problems(settings, checks)
        + _repair_problems("chop.", chop.repair, chop.ridge)
        + _unreadable(parse_budget, settings.budget)
    )


def _unreadable(parse: Callable[[str], object], *texts: str) -> list[str]:
    """What is wrong with texts of which those that are not empty must be readable."""
    problems = []
    for text in filter(None, texts):
        try:
            parse(text)
        except UserError as error:
            problems.append(str(error))
    return problems


def _repair_problems(where: str, kind: str, ridge: float) -> list[str]:
    named = f"{where}repair: {kind!r} is not one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
    checks = [
        (not kind or kind in KINDS, named),
        (math.isfinite(ridge) and ridge >= 0, f"{where}ridge is {ridge}: a number from 0 on"),
    ]
    return [message for holds, message in checks if not holds]


def _sweep_problems(settings: SweepSettings) -> list[str]:
    names = split_list(settings.strategies)
    wrong = _unreadable(parse_strategy, *names)
    strategies = [] if wrong else [parse_strategy(name) for name in names]
    masked = [strategy.name for strategy in strategies if masked_by(strategy.changes)]
    seeds, methods = split_list(settings.seeds), split_list(settings.methods)
    wrong += _unreadable(parse_method, *methods) + _unreadable(parse_budget, settings.budget)
    trained = any(method != REPAIR for method in methods) or settings.healed
    repaired = any(method.startswith(REPAIR) for method in methods) or settings.repair
    checks = [
        (not (methods and settings.healed), "methods and healed: give one of them"),
        (
            trained or not masked,
            f"strategies: {', '.join(masked)}: columns go in training; give healed=True or methods",
        ),
        (settings.draft >= 0, f"draft is {settings.draft}: not below 0"),
        (
            bool(settings.repair) or not repaired,
            f"repair: methods has one; say of which kind, {', '.join(KINDS)}",
        ),
        (
            trained or not settings.budget,
            f"budget: nothing is trained; give methods, of {', '.join(METHODS)}",
        ),
        (bool(names), "strategies: name at least one"),
        (bool(split_list(settings.remove)), "remove: give at least one number of layers"),
        (
            bool(settings.text.train) or not trained,
            "text.train: the text to heal on is missing",
        ),
        (
            bool(settings.text.train or settings.calibration.text)
            or not (any(strategy.looks for strategy in strategies) or repaired),
            "calibration.text: text for strategies that measure, and for a repair, is missing",
        ),
        (
            bool(seeds) and all(re.fullmatch("[0-9]{1,9}", seed) for seed in seeds),
            f"seeds: {settings.seeds!r}: numbers separated by commas are needed",
        ),
    ]
    repair = _repair_problems("", settings.repair, settings.ridge)
    return _problems(settings, checks) + repair + wrong


def _problems(settings: AnySettings, checks: list[tuple[bool, str]]) -> list[str]:
    """What is wrong, one sentence each: of `checks`, and of the settings that both verbs have."""
    score = settings.score
    unknown = [name for name in split_list(score.suite) if name not in SUITES]
    checks = [
        (bool(settings.model), "model: the parent is missing (a Hugging Face folder or hub id)"),
        *checks,
        (bool(settings.text.held_out), "text.held_out: text to measure on is missing"),
        (
            not settings.heal.teacher.top_k,
            "heal.teacher.top_k: only chopjax train reads what a teacher said beforehand",
        ),
        (
            not unknown,
            f"score.suite: {', '.join(map(repr, unknown))} is not one of {', '.join(SUITES)}",
        ),
        (
            bool(score.tasks or score.suite) or not (score.data_dir or score.without),
            "score.data_dir and score.without: give score.tasks or score.suite with them",
        ),
        (
            0 <= score.limit < 1 or (score.limit > 0 and score.limit.is_integer()),
            f"score.limit is {score.limit}: neither a number of documents nor a share such as 0.1",
        ),
        (score.max_length >= 0, f"score.max_length is {score.max_length}: not below 0"),
        (score.num_fewshot >= -1, f"score.num_fewshot is {score.num_fewshot}: not below -1"),
        (score.latency_batch >= 1, "score.latency_batch: at least 1 is needed"),
        (score.latency_length >= 0, "score.latency_length: not below 0"),
    ]
    return [message for holds, message in checks if not holds]
