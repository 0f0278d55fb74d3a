"""Whether two configs are of the same run: what settings mean, and what may change on a resume."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from chopjax.train.settings import Settings

# These came after 0.1.0. At their defaults they are no part of what a run means, so that what was
# recorded before them is the same run still.
LATER = ("from_scratch", "masks", "dimchop.", "adapter.", "teacher.")

# These may change when a run is resumed. Everything else changes what the run means. Of the data
# and of a teacher, fingerprints are compared and not where they lie.
MAY_CHANGE = (
    "data.train",
    "data.evaluation",
    "teacher.model",
    "teacher.revision",
    "compute.remat",
    "compute.attention",
    "compute.layers",
    "compute.microbatches",
    "compute.gather",
    "compute.loss_chunk",
    "compute.compiler_options",
    "compute.after_chop.",
    "mesh.",
    "evaluation.",
    "checkpoints.",
    "log.",
)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two resolved configs, as far as it changes what the run means."""
    before, after = meaning(saved), meaning(now)
    usual = flat(dataclasses.asdict(Settings()))  # what `meaning` leaves out
    pairs = {
        name: [m.get(name, usual.get(name)) for m in (before, after)] for name in before | after
    }
    return [f"{name}: {old!r} -> {new!r}" for name, (old, new) in pairs.items() if old != new]


# These say which arrays a state has: what was saved with others cannot be gone on with.
SHAPES = r"adapter\.(rank|targets): |dimchop\.final: (0\.0 -> |.* -> 0\.0$)"


def reshaped(changes: Sequence[str]) -> bool:
    """Whether one of `differences` is of that kind, which no --force gets over."""
    return any(re.match(SHAPES, change) for change in changes)


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what a run means, flat."""
    names = flat(config)
    means = {name: v for name, v in names.items() if not name.startswith(MAY_CHANGE)}
    defaults = flat(dataclasses.asdict(Settings()))
    if names.get("teacher.model"):
        means["teacher"] = "given"  # which one is told by its fingerprint
    return {
        name: value
        for name, value in means.items()
        if not (name.startswith(LATER) and value == defaults.get(name))
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings → {"data.train": value}."""
    result: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result
