"""Which layers go, by whatever means: a list, a name, a measure, a merge.

jax is imported where layers are measured alone, so that chopping by name runs without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chopjax.checkpoint.identity import fingerprint
from chopjax.checkpoint.source import Checkpoint, Files
from chopjax.chop.configurations import STRATEGIES, choose
from chopjax.chop.importance import (
    MEASURED,
    Protect,
    choose_measured,
    read_analysis,
    summary,
)
from chopjax.chop.merge import MERGES, Recipe, as_json, average_most_similar, bases
from chopjax.chop.period import whole_periods
from chopjax.keep import Keep, parse_keep, ranges
from chopjax.models import parameters

if TYPE_CHECKING:
    from chopjax.chop.analysis import AnalysisSettings

LOOKS = (*MEASURED, *MERGES)  # strategies that look at what layers do
KNOWN = (*STRATEGIES, *LOOKS)


@dataclasses.dataclass(frozen=True)
class Choice:
    """strategy, settings: as chopjax.json records them. recipe: how kept layers are merged with
    others; empty where nothing is merged."""

    strategy: str
    settings: dict[str, Any]
    keep: Keep
    recipe: Recipe = ()


def by_list(text: str, num_layers: int) -> Choice:
    """ "0,13-23" stay."""
    keep = parse_keep(text, num_layers)
    return Choice("keep", {"keep": ranges(keep)}, keep)


def all_layers(num_layers: int) -> Choice:
    """Of a language model that leaves the parts beside it."""
    keep = tuple(range(num_layers))
    return Choice("keep", {"keep": ranges(keep)}, keep)


def by_name(strategy: str, remove: str, num_layers: int) -> Choice:
    """One of STRATEGIES."""
    keep = choose(strategy, num_layers, remove)
    return Choice(strategy, {"remove": num_layers - len(keep)}, keep)


def by_periods(files: Files, strategy: str, remove: str) -> Choice:
    """One of STRATEGIES, which removes whole periods of layers."""
    keep = whole_periods(files, strategy, remove)
    return Choice(strategy, {"remove": files.num_layers - len(keep), "period": "whole"}, keep)


def measure_of(strategy: str) -> str:
    """The measure of `chopjax analyze` that by_analysis needs."""
    from chopjax.chop.analysis import needed_measure

    return needed_measure("similarity" if strategy == "average" else strategy)


def sleb_rounds(strategy: str, remove: int) -> int:
    """Of SLEB's search, if so many layers go: AnalysisSettings.rounds."""
    return remove if strategy == "sleb" else 0


def by_analysis(
    strategy: str, remove: int, analysis: Mapping[str, Any], protect: Protect
) -> Choice:
    """One of MEASURED, or the average of the most similar block."""
    about = {"remove": remove} | summary(analysis, protect)
    if strategy == "average":
        recipe, keep = average_most_similar(analysis, remove, protect)
        return Choice(strategy, about | {"merged": as_json(recipe)}, keep, recipe)
    return Choice(strategy, about, choose_measured(strategy, analysis, remove, protect))


def by_analysis_in(
    folder: Path, checkpoint: Checkpoint, strategy: str, remove: int, protect: Protect
) -> Choice:
    """The same from a folder of `chopjax analyze`. Raises UserError for that of another model."""
    config = checkpoint.config
    seen = fingerprint(checkpoint.raw_config, checkpoint.tensors, checkpoint.revision)
    analysis = read_analysis(folder, config.num_layers, parameters.count(config), seen)
    return by_analysis(strategy, remove, analysis, protect)


def by_laco(
    model: str,
    revision: str | None,
    inputs: Sequence[str],
    remove: int,
    settings: AnalysisSettings,
    field: str = "text",
) -> Choice:
    """LaCo tries merges on text."""
    from chopjax.chop.analysis import find_merges

    recipe, about = find_merges(model, inputs, settings, remove, revision, field)
    record = {"remove": remove, "merged": as_json(recipe)} | summary(about, settings.protect)
    return Choice("laco", record, bases(recipe), recipe)
