"""The repaired models of a sweep: WORKDIR/repaired/KEY/, there while their point is at work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.provenance import CHOP, entries, read_provenance
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.repair import repair
from chopjax.chop.repair_check import check_family
from chopjax.chop.stream import chop_checkpoint
from chopjax.data.lists import text_names
from chopjax.disk.mark import foreign, marked_by, remove_marked, some
from chopjax.errors import UserError
from chopjax.progress import say
from chopjax.runs.inputs import Inputs
from chopjax.runs.points import Point
from chopjax.runs.settings import SweepSettings, calibration_text, parent_of
from chopjax.runs.work import repair_settings

FOLDER = "repaired"


def check(settings: SweepSettings, parent: Description) -> None:
    """Raises UserError where no chop of the parent could be repaired."""
    if not isinstance(parent.weights, Checkpoint):
        raise UserError(
            f"repair: {settings.model} is a folder of chopjax's own; give what `chopjax export` "
            "makes of it"
        )
    check_family(parent.weights, settings.repair)


def about(settings: SweepSettings, inputs: Inputs) -> dict[str, Any]:
    """What a repair depends on apart from model, layers and seed; nothing without one."""
    if not settings.repair:
        return {}
    text = inputs.texts(calibration_text(settings), settings.text.field)
    return dataclasses.asdict(settings.calibration) | {
        "text": text,
        "repair": settings.repair,
        "ridge": settings.ridge,
    }


def repaired(settings: SweepSettings, workdir: Path, key: str, point: Point) -> Path:
    """The checkpoint of a point, chopped and repaired; as it was left where a run was killed."""
    out = workdir / FOLDER / key
    if marked_by(out) == "chop":
        return out
    model = parent_of(settings)
    checkpoint = describe(*model).weights
    assert isinstance(checkpoint, Checkpoint)
    how = repair_settings(settings, settings.repair, settings.ridge, point.seed)
    text, field = text_names(calibration_text(settings)), settings.text.field
    folds = repair(*model, text, point.keep, (), how, field)
    chop_checkpoint(checkpoint, point.keep, out, *point.chop(), overwrite=True, folds=folds)
    return out


def record(folder: Path) -> dict[str, Any]:
    """What the chopjax.json of a repaired checkpoint says of its repair."""
    provenance = read_provenance(folder)
    repair: dict[str, Any] = entries(provenance, CHOP)[-1]["settings"]["repair"]
    return repair


def remove(workdir: Path, keys: Sequence[str]) -> None:
    """Delete a point's checkpoint, unless its folder holds what others wrote."""
    for out in (workdir / FOLDER / key for key in keys):
        if marked_by(out) != "chop":
            continue
        if others := foreign(out):
            say(f"{out} stays: it holds what is not known to be the sweep's: {some(others)}")
        else:
            remove_marked(out)
