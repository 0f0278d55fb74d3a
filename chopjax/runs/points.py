"""Which points a sweep has, and in which order. No jax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from chopjax.chop.configurations import choose, resolve_remove
from chopjax.chop.fold_place import check_gaps, gaps_of
from chopjax.chop.importance import MEASURED, choose_measured, parse_protect
from chopjax.errors import UserError
from chopjax.keep import Keep, ranges
from chopjax.models.config import ModelConfig
from chopjax.narrow.units import Counts, narrower
from chopjax.progress import say
from chopjax.runs.methods import CHOPPED, SCRATCH, TRAINED, Method
from chopjax.runs.settings import SweepSettings, methods_of, split_list
from chopjax.runs.strategies import (
    KEEP,
    Change,
    Strategy,
    has_zeros,
    kind_of,
    masked_by,
    parse_strategy,
)

PARENT = "parent"


class Point(NamedTuple):
    """One model to score."""

    strategy: str
    remove: int
    keep: Keep
    seed: int  # of healing, and of the text that chose the layers or repaired the gaps
    method: Method = CHOPPED
    changes: tuple[Change, ...] = ()  # of the chopped model
    units: tuple[tuple[str, int], ...] = ()  # that stay in each layer, of those that are narrowed

    def config(self, parent: ModelConfig) -> ModelConfig:
        """Of the model that is scored."""
        return narrower(parent.keep(self.keep), dict(self.units))

    def chop(self) -> tuple[str, dict[str, Any]]:
        """Strategy and settings, as chopjax.json records them of `chopjax chop`."""
        chop = parse_strategy(self.strategy).chop
        return chop, {KEEP: ranges(self.keep)} if chop == KEEP else {"remove": self.remove}

    def row(self) -> dict[str, Any]:
        """What points.jsonl says of it, beside its figures."""
        return {
            "strategy": self.strategy,
            "remove": self.remove,
            "keep": ranges(self.keep),
            "healed": bool(self.method.trained),
            "repaired": self.method.repaired,
            "method": self.method.name,
            "seed": self.seed,
            **({"weights": kind} if (kind := kind_of(self.changes)) else {}),
        }


def plan(
    settings: SweepSettings,
    num_layers: int,
    analyses: Mapping[int, Mapping[str, Any]],
    units: Mapping[str, Counts],
) -> Iterator[Point]:
    """The points in the order in which they are done: the parent, all that is chopped and no more,
    then method by method and seed by seed; the number of layers coarsely at first.

    analyses: of each seed, what strategies that measure look at. units: of each strategy, what
    stays of layers that it narrows.
    """
    protect = parse_protect(settings.protect)

    def keep(strategy: Strategy, seed: int, count: int) -> Keep | None:
        """None where the strategy cannot remove so many layers."""
        try:
            if not count:
                return tuple(range(num_layers))
            if strategy.keep:
                return strategy.kept(num_layers)
            if strategy.chop in MEASURED:
                return choose_measured(strategy.chop, analyses[seed], count, protect)
            return choose(strategy.chop, num_layers, count)
        except UserError as error:
            say(f"left out: {error}")
            return None

    def mendable(kept: Keep) -> bool:
        try:
            check_gaps(settings.repair, gaps_of(kept, num_layers))
        except UserError as error:
            say(f"left out: {error}")
            return False
        return True

    yield Point(PARENT, 0, tuple(range(num_layers)), 0)
    wanted = {
        strategy: counts_of(settings, strategy, num_layers) for strategy in strategies_of(settings)
    }
    order = coarse_first([n for counts in wanted.values() for n in counts])
    first = next(iter(analyses))
    for method in (CHOPPED, *methods_of(settings)):
        for strategy in wanted:
            if method != CHOPPED and (reason := why_not(method, strategy)):
                say(f"left out: {strategy.name}, {method.name}: {reason}")
        for seed in analyses:
            for count in order:
                for strategy, counts in wanted.items():
                    if count not in counts or why_not(method, strategy):
                        continue
                    if not strategy.looks and seed != first and method == CHOPPED:
                        continue  # these choose the same layers whatever the text
                    kept = keep(strategy, seed, count)
                    if kept and (not method.repaired or mendable(kept)):
                        made = strategy.changes, tuple(units[strategy.name].items())
                        yield Point(strategy.name, count, kept, seed, method, *made)


def strategies_of(settings: SweepSettings) -> list[Strategy]:
    """The strategies of a sweep."""
    return [parse_strategy(name) for name in split_list(settings.strategies)]


def counts_of(settings: SweepSettings, strategy: Strategy, num_layers: int) -> Sequence[int]:
    """How many layers a strategy removes at its points. Raises UserError where the model has not
    so many."""
    every = [resolve_remove(n, num_layers) for n in split_list(settings.remove)]
    return strategy.counts(every, num_layers)


def why_not(method: Method, strategy: Strategy) -> str:
    """Why what a strategy makes is not made good again by a method; empty where it is."""
    if method.repaired and strategy.changes:
        return "chops alone are repaired"
    if masked_by(strategy.changes):
        if not method.trained:
            return "columns go while it is trained"
        if TRAINED[method.trained].base:
            return "adapters do not train the matrices that columns go from"
    if method.trained and (kind := kind_of(strategy.changes)):
        return f"weights in {kind} are not trained"
    if method.trained == SCRATCH and has_zeros(strategy.changes):
        return "random weights have no zeros"
    return ""


def coarse_first(values: Sequence[int]) -> list[int]:
    """The middle value, then the middles of what lies on either side, and so on."""
    ordered = sorted(set(values))
    parts, middles = [ordered], []
    while parts:
        part = parts.pop(0)
        if part:
            middle = len(part) // 2
            middles.append(part[middle])
            parts += [part[:middle], part[middle + 1 :]]
    return middles
