"""Every setting of `chopjax sweep`, with its default."""

from __future__ import annotations

import dataclasses
import re

from ml_collections import ConfigDict

from chopjax.chop.configurations import STRATEGIES
from chopjax.chop.importance import MEASURED, parse_protect
from chopjax.errors import did_you_mean
from chopjax.pipeline_settings import (
    DECIDED,
    CalibrationSettings,
    ScoreSettings,
    TextSettings,
    names,
    score_problems,
)
from chopjax.train.settings import Settings as HealSettings
from chopjax.train.settings import config_of, freeze


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """Strategies times numbers of layers: chop, perhaps heal, score."""

    model: str = ""  # the parent: a Hugging Face folder or hub id
    revision: str = ""  # of a hub id: branch, tag or commit
    # which layers go; several separated by commas
    strategies: str = ",".join([*STRATEGIES, *MEASURED])
    remove: str = "0.25,0.5,0.75"  # how many layers go: counts, fractions, percentages
    protect: str = "1,1"  # layers that measured strategies leave alone: first and last
    seeds: str = "0"  # of calibration text and healing; each measured point once for each
    healed: bool = False  # heal every point, too, with the same budget (`heal`)
    keep_healed: bool = False  # leave the healed models on disk
    text: TextSettings = TextSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    heal: HealSettings = HealSettings()  # its model, chop and data folders are filled in
    score: ScoreSettings = ScoreSettings()


def default_config() -> ConfigDict:
    """The base of every sweep's recipe."""
    return config_of(SweepSettings, (*DECIDED, "heal.seed"))


def read(config: ConfigDict) -> SweepSettings:
    """Check a config and freeze it. Raises UserError that lists everything that is wrong."""
    settings = freeze(SweepSettings, config, _contradictions)
    parse_protect(settings.protect)
    return settings


def _contradictions(settings: SweepSettings) -> list[str]:
    known = [*STRATEGIES, *MEASURED]
    checks = [
        (bool(settings.model), "model: the parent is missing (a Hugging Face folder or hub id)"),
        (bool(settings.text.held_out), "text.held_out: text to measure on is missing"),
        (bool(names(settings.strategies)), "strategies: name at least one"),
        (bool(names(settings.remove)), "remove: give at least one number of layers"),
        (
            bool(settings.text.train) or not settings.healed,
            "text.train: the text to heal on is missing",
        ),
        (
            bool(settings.text.train or settings.calibration.text)
            or not set(names(settings.strategies)) & set(MEASURED),
            "calibration.text: text for strategies that measure is missing",
        ),
        (
            bool(names(settings.seeds))
            and all(re.fullmatch("[0-9]{1,9}", s) for s in names(settings.seeds)),
            f"seeds: {settings.seeds!r}: numbers separated by commas are needed",
        ),
    ]
    unknown = [name for name in names(settings.strategies) if name not in known]
    problems = [message for holds, message in checks if not holds]
    return [*problems, *score_problems(settings.score)] + [
        f"strategies: {name!r} is not one of {', '.join(known)}{did_you_mean(name, known)}"
        for name in unknown
    ]
