"""Which points a sweep has, and in which order. No jax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from chopjax.chop.configurations import choose, resolve_remove
from chopjax.chop.fold_place import check_gaps, gaps_of
from chopjax.chop.importance import MEASURED, choose_measured, parse_protect
from chopjax.errors import UserError
from chopjax.keep import Keep
from chopjax.progress import say
from chopjax.runs.settings import SweepSettings, split_list

PARENT = "parent"


class Point(NamedTuple):
    """One model to score."""

    strategy: str
    remove: int
    keep: Keep
    healed: bool
    seed: int  # of healing, and of the text that chose the layers or repaired the gaps
    repaired: bool = False


def plan(
    settings: SweepSettings, num_layers: int, analyses: Mapping[int, Mapping[str, Any]]
) -> Iterator[Point]:
    """The points in the order in which they are done: the parent, then all that needs no healing,
    then the healed ones, seed by seed; the number of layers coarsely at first. With a repair, each
    of the two once more, repaired.

    analyses: of each seed, what strategies that measure look at.
    """
    protect = parse_protect(settings.protect)

    def keep(strategy: str, seed: int, count: int) -> Keep | None:
        """None where the strategy cannot remove so many layers."""
        try:
            if strategy in MEASURED:
                return choose_measured(strategy, analyses[seed], count, protect)
            return choose(strategy, num_layers, count)
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

    yield Point(PARENT, 0, tuple(range(num_layers)), False, 0)
    counts = coarse_first([resolve_remove(n, num_layers) for n in split_list(settings.remove)])
    first = next(iter(analyses))
    states = [
        (healed, repaired)
        for healed in ((False, True) if settings.healed else (False,))
        for repaired in ((False, True) if settings.repair else (False,))
    ]
    for healed, repaired in states:
        for seed in analyses:
            for count in counts:
                for strategy in split_list(settings.strategies):
                    if strategy not in MEASURED and seed != first and not (healed or repaired):
                        continue  # a name chooses the same layers whatever the text
                    kept = keep(strategy, seed, count)
                    if kept and (not repaired or mendable(kept)):
                        yield Point(strategy, count, kept, healed, seed, repaired)


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
