"""Which model teaches, and which of its layers teaches which of the student's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.identity import changes, of_description
from chopjax.checkpoint.provenance import CHOP, entries
from chopjax.data.tokenizer import load_tokenizer
from chopjax.errors import UserError
from chopjax.keep import Keep, parse_layers
from chopjax.models import families
from chopjax.models.config import ModelConfig
from chopjax.train.origin import Origin
from chopjax.train.settings import PARENT, Settings, TeacherSettings


@dataclasses.dataclass(frozen=True)
class Teacher:
    """before, after: the teacher's layer for each of the student's, with all of its layers and
    with those that stay; None where nothing says so. fingerprint: see checkpoint/identity.py; empty
    where the weights are not there."""

    name: str
    revision: str | None
    raw_config: dict[str, Any]
    before: Keep | None
    after: Keep | None
    fingerprint: dict[str, str | None]

    @property
    def config(self) -> ModelConfig:
        return families.translate(self.raw_config)[1]

    def layers_of(self, num_layers: int) -> Keep | None:
        """Those that teach a student of so many layers."""
        known = {len(layers): layers for layers in (self.before, self.after) if layers}
        return known.get(num_layers)

    def record(self) -> dict[str, Any]:
        """For run.json; `resumed` reads it."""
        return dataclasses.asdict(self)


def compares_layers(asked: TeacherSettings) -> bool:
    """Whether the teacher's layers are held beside the student's, one by one."""
    return bool(asked.hidden or asked.attention or asked.mimic)


def is_base(settings: Settings) -> bool:
    """Whether the teacher is what adapters stand on: the parent that the run itself chops. Then the
    two are held once, as the base is, quantized too; `dtype` asks for a teacher of its own."""
    asked, chops = settings.teacher, settings.chop.keep or settings.chop.strategy
    return bool(settings.adapter.rank and chops and asked.model == PARENT and asked.dtype == "same")


# ---------------------------------------------------------------------------- Of a run that begins


def find_teacher(
    settings: Settings, origin: Origin, provenance: Mapping[str, Any] | None
) -> tuple[Teacher, Description]:
    """The teacher that the settings name, without reading a weight.

    provenance: chopjax.json of what the run begins with. Raises UserError where there is no such
    model, and where nothing says which layer teaches which.
    """
    name, revision = place_of(settings, provenance)
    try:
        found = describe(name, revision)
    except UserError as error:
        if settings.teacher.model != PARENT:
            raise UserError(f"teacher.model: {error}") from error
        raise UserError(
            f"teacher.model {PARENT}: the student was cut from {name}, which cannot be read: "
            f"{error}\nGive the place where it lies as teacher.model"
        ) from error
    layers = lay_beside(settings.teacher, origin, provenance, name, found.config.num_layers)
    return _teacher(name, found, layers), found


def place_of(settings: Settings, provenance: Mapping[str, Any] | None) -> tuple[str, str | None]:
    """Folder or hub id, and revision. Raises UserError for the parent of what has none."""
    asked, chop = settings.teacher, settings.chop
    if asked.model != PARENT:
        return asked.model, asked.revision or None
    if settings.model and (chop.keep or chop.strategy):
        return settings.model, settings.revision or None
    if not entries(provenance, CHOP):
        raise UserError(
            f"teacher.model {PARENT}: {settings.model or 'random weights'}: no chop is recorded "
            "(chopjax.json), and this run makes none of a checkpoint; give the teacher's folder or "
            "hub id"
        )
    assert provenance is not None
    parent = provenance["parent"]
    return parent["name"], parent["revision"]


def lay_beside(
    asked: TeacherSettings,
    origin: Origin,
    provenance: Mapping[str, Any] | None,
    name: str,
    theirs: int,
) -> tuple[Keep | None, Keep | None]:
    """Teacher.before and after, for a teacher of this name with so many layers. Raises UserError
    where they are needed and nothing says them."""
    ours = families.translate(origin.raw_config)[1].num_layers
    student = ours if origin.keep is None else len(origin.keep)
    deep, kept = None, None
    if entries(provenance, CHOP):
        assert provenance is not None
        deep, kept = provenance["parent"]["num_layers"], tuple(provenance["kept_layers"])
    if asked.map:
        return None, _given(asked.map, student, theirs)
    before = None
    if ours == theirs:
        before = tuple(range(ours))
    elif deep == theirs and kept is not None and len(kept) == ours:
        before = kept
    if before is not None:
        return before, before if origin.keep is None else tuple(before[k] for k in origin.keep)
    if compares_layers(asked) or asked.model == PARENT:
        said = f", and chopjax.json says that it was cut from {deep}" if deep else ""
        raise UserError(
            f"teacher.model {name}: {theirs} layers; the student has {student}{said}. Name the "
            'layer that teaches each of the student\'s with teacher.map ("0,7-11")'
        )
    return None, None


def _given(text: str, student: int, theirs: int) -> Keep:
    layers = parse_layers("teacher.map", text, theirs)
    if len(layers) != student:
        raise UserError(
            f"teacher.map {text!r}: {len(layers)} of the teacher's layers; the student has "
            f"{student}, and each needs one"
        )
    return layers


# ---------------------------------------------------------------------------- Of a run that goes on


def resumed(
    record: Mapping[str, Any] | None, asked: TeacherSettings
) -> tuple[Teacher, Description]:
    """The teacher of a run that is resumed, as it lies now where the settings say."""
    if record is None:
        raise UserError("teacher.model: this run began without a teacher; give another --workdir")
    name, revision = record["name"], record["revision"]
    if asked.model != PARENT:
        name, revision = asked.model, asked.revision or None
    try:
        found = describe(name, revision)
    except UserError as error:
        raise UserError(f"teacher.model: {error}") from error
    before, after = (record[side] and tuple(record[side]) for side in ("before", "after"))
    return _teacher(name, found, (before, after)), found


def different(record: Mapping[str, Any], now: Teacher) -> list[str]:
    """What tells the teacher of a resumed run from the one that it had, in words."""
    return changes(record["fingerprint"], now.fingerprint)


# ------------------------------------------------------------------------------------------ Of both


def _teacher(name: str, found: Description, layers: tuple[Keep | None, Keep | None]) -> Teacher:
    fingerprint = of_description(found)
    return Teacher(name, found.revision, found.raw_config, *layers, fingerprint)


def check_teacher(
    found: Description, student: ModelConfig, tokenizer: Path, settings: Settings
) -> None:
    """Raise UserError where a teacher cannot read what the student reads.

    tokenizer: the folder of the student's.
    """
    where = f"teacher.model {found.name}"
    advice = "teacher and student must have the same tokens"
    theirs, ours = found.config.vocab_size, student.vocab_size
    if theirs != ours:
        raise UserError(
            f"{where}: a vocabulary of {theirs:,}, and the student's has {ours:,}; {advice}"
        )
    if load_tokenizer(found.folder).fingerprint != load_tokenizer(tokenizer).fingerprint:
        raise UserError(f"{where}: its tokenizer is another than the student's; {advice}")
    positions, length = found.config.max_positions, settings.data.sequence_length
    if length > positions:
        raise UserError(
            f"{where}: it has only {positions} positions, and data.sequence_length is {length}"
        )
