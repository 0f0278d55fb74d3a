"""Records of `chopjax run`: WORKDIR/stages/NAME.json, with a copy in WORKDIR/stages/copies.

A record is written before its stage begins, so that a killed stage resumes with what it had, and
again when the stage has ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chopjax.disk.atomic import new_file
from chopjax.errors import UserError
from chopjax.runs.inputs import digest
from chopjax.runs.stages import Record, Stage

FOLDER = "stages"
COPIES = "copies"


class StageRecords:
    """A file a stage: what was done last under its name. Raises UserError where files stand in the
    place of the folders."""

    def __init__(self, workdir: Path):
        self.folder, self.copies = workdir / FOLDER, workdir / FOLDER / COPIES
        for place in (self.folder, self.copies):
            if os.path.lexists(place) and not place.is_dir():
                raise UserError(f"{place} is not a folder; move it away")

    def find(self, stage: Stage, fingerprints: Sequence[str]) -> Record | None:
        """A stage's record, or its copy; None where there is neither. Absent is not unreadable."""
        path, copy = self.folder / f"{stage.name}.json", self.copies / f"{stage.name}.json"
        try:
            copied = _read(copy)
        except ValueError as error:
            raise UserError(
                f"{copy}: the copy of the stage's record is damaged ({error}). Delete it: nothing "
                f"is lost as long as {path} is there"
            ) from None
        try:
            return _read(path) or copied
        except ValueError as error:
            advice = (
                "Delete it: its copy takes its place, and nothing is done again"
                if copied
                else "It has no copy. Move it away, and what the stage made, to run the stage again"
            )
            raise UserError(f"{path}: the stage's record is damaged ({error}). {advice}") from None

    def write(self, stage: Stage, record: Record) -> None:
        content: dict[str, Any] = {"fingerprint": record.fingerprint, "settings": record.settings}
        if record.result is not None:
            content |= {"seconds": record.seconds, "result": record.result}
        content = json.loads(json.dumps(content))  # as it will be read
        content["digest"] = digest(content)
        for folder in (self.copies, self.folder):
            with new_file(folder / f"{stage.name}.json", overwrite=True) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")


def _read(path: Path) -> Record | None:
    """None where there is no file. Raises ValueError for all but a record as it was written."""
    if not os.path.lexists(path):
        return None
    if path.is_symlink():
        raise ValueError("it is a link")
    try:
        content = json.loads(path.read_bytes())
        if "digest" in content and content.pop("digest") != digest(content):
            raise ValueError("it is not as it was written")
        record = Record(
            content["fingerprint"],
            content["settings"],
            content.get("result"),
            content.get("seconds", 0.0),
        )
        sound = isinstance(record.fingerprint, str) and isinstance(record.settings, dict)
        if "result" in content:
            sound = sound and isinstance(record.result, dict) and content["seconds"] >= 0
    except (OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not sound:
        raise ValueError("not what a stage writes")
    return record
