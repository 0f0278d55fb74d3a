"""What a sweep's strategies make of the parent beside a chop: zeros, narrower layers, fewer bits.

Each is made by the function of its verb, one after the other, and lies on the disk while the points
that are made of it are at work:

    WORKDIR/made/KEY/0-chop, 1-sparsify, 2-quantize, …
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.stream import chop_checkpoint
from chopjax.data.lists import text_names
from chopjax.disk.mark import foreign, marked_by, remove_marked, some
from chopjax.errors import UserError
from chopjax.narrow.narrow import NarrowSettings, narrow
from chopjax.narrow.units import make_plan
from chopjax.progress import say
from chopjax.quantize import quantize as quantizing
from chopjax.quantize.by_text import quantize_by_text
from chopjax.quantize.quantize import quantize_checkpoint
from chopjax.runs.inputs import WAYS, Inputs, digest
from chopjax.runs.points import Point
from chopjax.runs.settings import Model, SweepSettings, calibration_text, parent_of
from chopjax.runs.strategies import (
    Bits,
    Narrow,
    Sparse,
    Strategy,
    before_training,
    looks,
)
from chopjax.sparsify import matrices
from chopjax.sparsify.pattern import parse_pattern
from chopjax.sparsify.sparsify import SparsifySettings, sparsify

FOLDER = "made"
CHOP, SPARSIFY, NARROW, QUANTIZE = VERBS = ("chop", "sparsify", "narrow", "quantize")


def check(settings: SweepSettings, parent: Description, strategy: Strategy) -> dict[str, int]:
    """Of what a strategy narrows, the units that stay in each layer (narrow/units.py).

    Raises UserError where the parent cannot be changed so, with the reason.
    """
    if not strategy.changes:
        return {}
    checkpoint, kept = parent.weights, dict[str, int]()
    if not isinstance(checkpoint, Checkpoint):
        raise UserError(
            f"strategies: {strategy.name}: {settings.model} is a folder of chopjax's own; give "
            "what `chopjax export` makes of it"
        )
    try:
        for change in strategy.changes:
            # A chop changes no width; behind a narrower layer, the checkpoint is imagined.
            if isinstance(change, Sparse):
                matrices.check(checkpoint, parse_pattern(change.pattern))
            elif isinstance(change, Narrow):
                about = checkpoint.family, checkpoint.raw_config, checkpoint.config
                plan = make_plan(*about, dict(change.shares))
                kept |= plan.kept
                checkpoint = dataclasses.replace(
                    checkpoint, config=plan.config, raw_config=plan.raw_config
                )
            elif isinstance(change, Bits):
                quantizing.check(checkpoint, change.kind, None)
            if not isinstance(change, Bits):  # what comes of codes is in floating point
                checkpoint = dataclasses.replace(checkpoint, decoded=None)
    except UserError as error:
        raise UserError(f"strategies: {strategy.name}: {error}") from None
    return kept


def about(settings: SweepSettings, inputs: Inputs, point: Point) -> list[Any]:
    """What a point's changes depend on apart from the parent and its layers; nothing without."""
    changes: list[Any] = [[type(c).__name__, dataclasses.asdict(c)] for c in point.changes]
    if any(map(looks, point.changes)):
        text = inputs.texts(calibration_text(settings), settings.text.field)
        calibration = settings.calibration
        read = [text, calibration.sequences, calibration.sequence_length, point.seed]
        changes.append(read)
    return changes


def place(settings: SweepSettings, workdir: Path, parent: Description, point: Point) -> Path:
    """Where a point is made; the same for points that differ in their healing alone."""
    inputs = WAYS[0]
    depends = [inputs.model(parent), list(point.keep), about(settings, inputs, point)]
    return workdir / FOLDER / digest(depends)[:16]


def made(settings: SweepSettings, folder: Path, point: Point) -> Path:
    """The checkpoint of a point; what is there is not made again, and what a kill left is taken up
    where the verb can."""
    model = parent_of(settings)
    if point.remove:
        model = _chopped(model, folder / f"0-{CHOP}", point)
    for number, change in enumerate(before_training(point.changes), 1):
        out = folder / f"{number}-{_verb(change)}"
        if marked_by(out) != _verb(change):
            _make(settings, model, out, change, point.seed)
        model = Model(str(out))
    return Path(model.name)


def _chopped(model: Model, out: Path, point: Point) -> Model:
    if marked_by(out) != CHOP:
        checkpoint = describe(*model).weights
        assert isinstance(checkpoint, Checkpoint)
        chop_checkpoint(checkpoint, point.keep, out, *point.chop(), overwrite=True)
    return Model(str(out))


def _verb(change: Sparse | Narrow | Bits) -> str:
    if isinstance(change, Sparse):
        return SPARSIFY
    return NARROW if isinstance(change, Narrow) else QUANTIZE


def _make(
    settings: SweepSettings, model: Model, out: Path, change: Sparse | Narrow | Bits, seed: int
) -> None:
    """By the verb's own function."""
    calibration, field = settings.calibration, settings.text.field
    text = text_names(calibration_text(settings)) if looks(change) else []
    amount = (calibration.sequences, calibration.sequence_length)
    if isinstance(change, Sparse):
        zeros = SparsifySettings(change.method, parse_pattern(change.pattern), *amount, seed)
        sparsify(model.name, out, zeros, text, model.revision, field, overwrite=True)
    elif isinstance(change, Narrow):
        widths = NarrowSettings(dict(change.shares), change.method, *amount, seed)
        narrow(model.name, out, widths, text, model.revision, field, overwrite=True)
    elif text:
        quantize_by_text(
            model.name, out, change.kind, text, None, *amount, model.revision, field,
            overwrite=True, seed=seed,
        )  # fmt: skip
    else:
        quantize_checkpoint(model.name, out, change.kind, None, model.revision, overwrite=True)


def remove(folder: Path) -> None:
    """Delete what a point was made of, unless a folder holds what others wrote."""
    for out in sorted(folder.glob("[0-9]*-*")) if folder.is_dir() else ():
        if marked_by(out) not in VERBS:
            continue
        if others := foreign(out):
            say(f"{out} stays: it holds what is not known to be the sweep's: {some(others)}")
        else:
            remove_marked(out)
    with contextlib.suppress(OSError):  # others' files
        folder.rmdir()
