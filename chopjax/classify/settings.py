"""What `chopjax classify` is asked, and the cells of its grid. No jax."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

from chopjax.checkpoint.describe import Description
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.choice import Choice, all_layers, by_analysis_in, by_name
from chopjax.chop.configurations import STRATEGIES
from chopjax.chop.importance import DEFAULT_PROTECT, MEASURED, Protect
from chopjax.classify.split import SplitSettings
from chopjax.classify.ways import HEADS, LEARNING_RATES, METHODS, HeadKind, MethodKind
from chopjax.disk.files import expanded
from chopjax.errors import UserError, did_you_mean
from chopjax.keep import Keep

ALL = "all"


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Why Lift so Heavy's protocol; the sister paper's code has batches of one example."""

    epochs: int = 50  # at most
    patience: int = 15  # epochs without a better accuracy on held-out examples
    batch_size: int = 1  # examples a step


@dataclasses.dataclass(frozen=True)
class ClassifySettings:
    """One call. field: None looks for the usual names. max_tokens: of an example's text; longer
    ones are left out. learning_rate: None is the method's own. rank, targets: of `lora`. analysis,
    protect: for strategies that measure."""

    model: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    template: str
    layers: str
    revision: str | None = None
    field: str | None = None
    label_field: str = "label"
    max_tokens: int | None = None
    strategies: tuple[str, ...] = ("first",)
    heads: tuple[HeadKind, ...] = ("lm",)
    methods: tuple[MethodKind, ...] = ("full",)
    seeds: int = 5
    split: SplitSettings = SplitSettings()
    training: TrainSettings = TrainSettings()
    learning_rate: float | None = None
    rank: int = 8
    targets: str = "all"
    dtype: str = "auto"
    analysis: str | None = None
    protect: Protect = DEFAULT_PROTECT

    def rate_of(self, method: MethodKind) -> float:
        return LEARNING_RATES[method] if self.learning_rate is None else self.learning_rate


class Cell(NamedTuple):
    """A point of the grid. keep: the parent's layers that stay."""

    strategy: str
    keep: Keep
    method: MethodKind
    head: HeadKind
    seed: int


def check(settings: ClassifySettings) -> None:
    """Raises UserError for what no model could make right."""
    least = {
        "--seeds": settings.seeds,
        "--per-class": settings.split.per_class,
        "--held-out": settings.split.held_out,
        "--max-test": settings.split.max_test,
        "--epochs": settings.training.epochs,
        "--patience": settings.training.patience,
        "--batch-size": settings.training.batch_size,
        "--rank": settings.rank,
        "--max-tokens": 1 if settings.max_tokens is None else settings.max_tokens,
    }
    for flag, value in least.items():
        if not 1 <= value < 2**31:
            raise UserError(f"{flag} {value}: at least 1 is needed")
    rate = settings.learning_rate
    if rate is not None and not 0 < rate < 1e3:
        raise UserError(f"--learning-rate {rate:g}: a number above 0 is needed")
    known = {
        "--strategy": (settings.strategies, (*STRATEGIES, *MEASURED)),
        "--method": (settings.methods, METHODS),
        "--head": (settings.heads, HEADS),
    }
    for flag, (given, choices) in known.items():
        if not given:
            raise UserError(f"{flag}: nothing is named; choose of {', '.join(choices)}")
        for name in given:
            if name not in choices:
                near = did_you_mean(name, choices)
                raise UserError(f"{flag}: {name!r} is not one of {', '.join(choices)}{near}")
    measured = [name for name in settings.strategies if name in MEASURED]
    if measured and settings.analysis is None:
        raise UserError(
            f"--strategy {measured[0]} looks at what layers do: give --analysis DIR, from "
            "`chopjax analyze`"
        )
    usual = {field.name: field.default for field in dataclasses.fields(settings)}
    for needed, names, what in (
        (
            bool(measured),
            ("analysis", "protect"),
            f"strategies that measure: {', '.join(MEASURED)}",
        ),
        ("lora" in settings.methods, ("rank", "targets"), "--method lora"),
    ):
        for name in names:
            if not needed and getattr(settings, name) != usual[name]:
                raise UserError(f"--{name} is for {what}")


def cells(settings: ClassifySettings, description: Description) -> list[Cell]:
    """All of the grid, in the order in which they are worked off: the seeds of a depth, method and
    head stand together. Raises UserError for layers that a strategy cannot choose."""
    counts = parse_layers(settings.layers, description.config.num_layers)
    found = []
    for strategy, count, method, head in _depths(settings, counts):
        keep = choice_of(settings, description, strategy, count).keep
        found += [Cell(strategy, keep, method, head, seed) for seed in range(settings.seeds)]
    return found


def _depths(
    settings: ClassifySettings, counts: list[int]
) -> Iterator[tuple[str, int, MethodKind, HeadKind]]:
    for strategy in dict.fromkeys(settings.strategies):
        for count in counts:
            for method in dict.fromkeys(settings.methods):
                for head in dict.fromkeys(settings.heads):
                    yield strategy, count, method, head


def parse_layers(text: str, num_layers: int) -> list[int]:
    """ "1,2,all" → how many layers are kept, ascending."""
    counts = set()
    for part in text.split(","):
        word = part.strip()
        if word == ALL:
            counts.add(num_layers)
        elif re.fullmatch("[0-9]{1,9}", word) and 1 <= int(word) <= num_layers:
            counts.add(int(word))
        else:
            raise UserError(
                f"--layers {text!r}: {word!r} is no number of layers from 1 to {num_layers}, which "
                f"the model has, nor {ALL}"
            )
    return sorted(counts)


def choice_of(
    settings: ClassifySettings, description: Description, strategy: str, count: int
) -> Choice:
    """The layers that a strategy keeps, so many of them."""
    num_layers = description.config.num_layers
    if count == num_layers:
        return all_layers(num_layers)
    if strategy in STRATEGIES:
        return by_name(strategy, str(num_layers - count), num_layers)
    if not isinstance(description.weights, Checkpoint):
        raise UserError(
            f"--strategy {strategy}: an analysis is of a Hugging Face checkpoint, and "
            f"{description.name} is none; export it first"
        )
    assert settings.analysis is not None  # see check
    folder, remove = expanded(settings.analysis), num_layers - count
    return by_analysis_in(folder, description.weights, strategy, remove, settings.protect)
