"""What is done, as it is written down: the records of stages (stages.py).

    of `chopjax run`      WORKDIR/stages/NAME.json, with a copy in WORKDIR/stages/copies
    of `chopjax sweep`    WORKDIR/points.jsonl, a row a point, appended as it finishes, and
                          WORKDIR/analysis-SEED/analysis.json

A run's record is written before its stage begins, so that a killed stage resumes with what it had,
and again when it has ended. Of a sweep, what has only begun is not written down: the training run
of a point knows itself how far it came.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chopjax.disk.atomic import USERS_ERRORS, new_file
from chopjax.disk.mark import is_taken
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
        result, seconds = content.get("result"), content.get("seconds", 0.0)
        record = Record(content["fingerprint"], content["settings"], result, seconds)
        sound = isinstance(record.fingerprint, str) and isinstance(record.settings, dict)
        if "result" in content:
            sound = sound and isinstance(result, dict) and content["seconds"] >= 0
    except (OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not sound:
        raise ValueError("not what a stage writes")
    return record


# ------------------------------------------------------------------------------ Of a sweep


class PointRecords:
    """points.jsonl: every point that was ever done here, by its stage's name and its fingerprint,
    which the row has as `key`.

    figures: fingerprint → the row of a model with these figures, whichever point it was.
    """

    def __init__(self, path: Path):
        """Cuts off what a killed run left of a line."""
        self.path = path
        rows, whole = _read_points(path)
        if path.exists() and path.stat().st_size > len(whole.encode()):
            with new_file(path, overwrite=True) as temporary:
                temporary.write_text(whole)
        self.figures = {row["key"]: row for row in rows}
        self._rows = {(stage_name(row["strategy"], row["seed"]), row["key"]): row for row in rows}

    def find(self, stage: Stage, fingerprints: Sequence[str]) -> Record | None:
        rows = (self._rows.get((stage.name, fingerprint)) for fingerprint in fingerprints)
        row = next(filter(None, rows), None)
        return None if row is None else Record(fingerprints[0], stage.settings, row)

    def write(self, stage: Stage, record: Record) -> None:
        if row := record.result:
            _append(self.path, row)
            self.figures[record.fingerprint] = row


def stage_name(strategy: str, seed: int) -> str:
    """The name of a point's stage; its fingerprint tells the rest."""
    return f"{strategy}, seed {seed}"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The points done so far, without what a killed run left of a line. Raises UserError for what
    no sweep writes."""
    return _read_points(path)[0]


def _read_points(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The same, and the lines that they stand in."""
    if not path.exists():
        return [], ""
    try:
        text = path.read_text()
        end = text.rfind("\n") + 1
        rows = [json.loads(line) for line in text[:end].splitlines()]
        for number, row in enumerate(rows, 1):
            if not _is_row(row):
                raise ValueError(f"line {number} is not a point of a sweep")
        if not text[end:].startswith('{"loss": '[: len(text) - end]):
            raise ValueError("the last line is not a point of a sweep")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({error}). Delete the line, or move the file away to measure all "
            "points again."
        ) from error
    return rows, text[:end]


_KINDS: dict[type, tuple[str, ...]] = {
    str: ("strategy", "key", "keep"),
    int: ("seed", "remove"),
    bool: ("healed",),
    dict: ("accuracy", "chance"),
}
_NUMBERS = ("loss", "perplexity", "bits_per_byte", "loss_over_log_vocabulary", "tokens")


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), kind) for kind, names in _KINDS.items() for name in names)
        and all(type(row.get(name)) in (int, float) for name in _NUMBERS)
    )


def _append(path: Path, row: Mapping[str, Any]) -> None:
    try:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        raise UserError(
            f"{path}: {error.strerror}. The points before this one are safe; free some space or "
            "repair the folder, then start again."
        ) from error


class AnalysisRecords:
    """analysis.json, with what it was asked of as `asked`. One with more measures than are needed,
    or more rounds of SLEB's search, serves as well."""

    def __init__(self, path: Path, measures: Sequence[str], rounds: int = 0):
        self.path, self.measures, self.rounds = path, measures, rounds

    def find(self, stage: Stage, fingerprints: Sequence[str]) -> Record | None:
        if not is_taken(self.path):
            return None
        try:
            analysis = json.loads(self.path.read_bytes())
            measures = analysis["settings"]["measures"]
            rounds = len(analysis["measures"].get("sleb", ()))
            sound = isinstance(analysis["asked"], dict) and isinstance(measures, list)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise UserError(f"{self.path}: not what a sweep writes, or damaged; move it away")
        if not set(self.measures) <= set(measures) or rounds < self.rounds:
            return None
        return Record(digest(analysis["asked"]), analysis["asked"], analysis)

    def write(self, stage: Stage, record: Record) -> None:
        if record.result is not None:
            with new_file(self.path, overwrite=True) as temporary:
                content = record.result | {"asked": record.settings}
                temporary.write_text(json.dumps(content, indent=1) + "\n")
