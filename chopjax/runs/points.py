"""Which points a sweep has, and in which order; measures layers where a strategy needs it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chopjax.checkpoint.describe import describe
from chopjax.chop.analysis import analyze, needed_measure
from chopjax.chop.configurations import choose, resolve_remove
from chopjax.chop.importance import ANALYSIS, MEASURED, choose_measured, parse_protect
from chopjax.data.lists import text_names
from chopjax.disk.atomic import new_file
from chopjax.disk.mark import is_taken
from chopjax.errors import UserError
from chopjax.keep import Keep
from chopjax.progress import say
from chopjax.runs.inputs import WAYS, Inputs
from chopjax.runs.settings import SweepSettings, calibration_text, split_list
from chopjax.runs.work import analysis_settings

PARENT = "parent"


class Point(NamedTuple):
    """One model to score."""

    strategy: str
    remove: int
    keep: Keep
    healed: bool
    seed: int  # of healing, and of the text that chose the layers


def plan(settings: SweepSettings, workdir: Path, num_layers: int) -> Iterator[Point]:
    """The points in the order in which they are done: the parent, then all that needs no healing,
    then the healed ones, seed by seed; the number of layers coarsely at first.

    Measures layers where a strategy needs it and workdir has no analysis yet.
    """
    yield Point(PARENT, 0, tuple(range(num_layers)), False, 0)
    seeds = [int(seed) for seed in split_list(settings.seeds)]
    counts = coarse_first([resolve_remove(n, num_layers) for n in split_list(settings.remove)])
    analyses = {seed: _analysis(settings, workdir, seed) for seed in seeds}
    for healed in (False, True) if settings.healed else (False,):
        for seed in seeds:
            for count in counts:
                for strategy in split_list(settings.strategies):
                    if strategy not in MEASURED and seed != seeds[0] and not healed:
                        continue  # a name chooses the same layers whatever the text
                    keep = _keep(settings, strategy, analyses[seed], num_layers, count)
                    if keep is not None:
                        yield Point(strategy, count, keep, healed, seed)


def coarse_first(values: Sequence[int]) -> list[int]:
    """The middle value, then the middles of what lies on either side, and so on."""
    ordered = sorted(set(values))
    parts, found = [ordered], []
    while parts:
        part = parts.pop(0)
        if part:
            middle = len(part) // 2
            found.append(part[middle])
            parts += [part[:middle], part[middle + 1 :]]
    return found


def _keep(
    settings: SweepSettings,
    strategy: str,
    analysis: Mapping[str, Any],
    num_layers: int,
    count: int,
) -> Keep | None:
    """None where the strategy cannot remove so many layers."""
    try:
        if strategy in MEASURED:
            return choose_measured(strategy, analysis, count, parse_protect(settings.protect))
        return choose(strategy, num_layers, count)
    except UserError as error:
        say(f"left out: {error}")
        return None


def _analysis(settings: SweepSettings, workdir: Path, seed: int) -> dict[str, Any]:
    """The measures that the strategies need, from workdir where they have been taken before."""
    measures = [needed_measure(s) for s in split_list(settings.strategies) if s in MEASURED]
    if not measures:
        return {}
    unique = tuple(dict.fromkeys(measures))
    about = analysis_settings(settings.calibration, unique, settings.protect, seed)
    text = calibration_text(settings)
    revision, field = settings.revision or None, settings.text.field
    parent = describe(settings.model, revision)

    def asked(inputs: Inputs) -> dict[str, Any]:
        found = {
            "parent": inputs.model(parent),
            "text": inputs.texts(text, field),
            "settings": dataclasses.asdict(about) | {"measures": []},
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    path = workdir / f"analysis-{seed}" / ANALYSIS
    if is_taken(path):
        found = _read_own(path)
        enough = set(measures) <= set(found["settings"]["measures"])
        if enough and found["asked"] in map(asked, WAYS):
            return found
    say(f"measuring layers, seed {seed}")
    found = analyze(settings.model, text_names(text), about, revision, field)
    with new_file(path, overwrite=True) as temporary:
        content = found | {"asked": asked(WAYS[0])}
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return found


def _read_own(path: Path) -> dict[str, Any]:
    """An analysis that a sweep wrote. Raises UserError for anything else in its place."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        sound = isinstance(found["asked"], dict) and isinstance(found["settings"]["measures"], list)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path}: not what a sweep writes, or damaged; move it away")
    return found
