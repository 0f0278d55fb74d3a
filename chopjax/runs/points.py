"""Which points a sweep has, and in which order. No jax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from chopjax.chop.configurations import choose, resolve_remove
from chopjax.chop.fold_place import check_gaps, gaps_of
from chopjax.chop.importance import MEASURED, choose_measured, parse_protect
from chopjax.errors import UserError
from chopjax.keep import Keep, ranges
from chopjax.progress import say
from chopjax.runs.methods import CHOPPED, Method
from chopjax.runs.settings import SweepSettings, methods_of, split_list

PARENT = "parent"


class Point(NamedTuple):
    """One model to score."""

    strategy: str
    remove: int
    keep: Keep
    seed: int  # of healing, and of the text that chose the layers or repaired the gaps
    method: Method = CHOPPED

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
        }


def plan(
    settings: SweepSettings, num_layers: int, analyses: Mapping[int, Mapping[str, Any]]
) -> Iterator[Point]:
    """The points in the order in which they are done: the parent, all that is chopped and no more,
    then method by method and seed by seed; the number of layers coarsely at first.

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

    yield Point(PARENT, 0, tuple(range(num_layers)), 0)
    counts = coarse_first([resolve_remove(n, num_layers) for n in split_list(settings.remove)])
    first = next(iter(analyses))
    for method in (CHOPPED, *methods_of(settings)):
        for seed in analyses:
            for count in counts:
                for strategy in split_list(settings.strategies):
                    if strategy not in MEASURED and seed != first and method == CHOPPED:
                        continue  # a name chooses the same layers whatever the text
                    kept = keep(strategy, seed, count)
                    if kept and (not method.repaired or mendable(kept)):
                        yield Point(strategy, count, kept, seed, method)


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
