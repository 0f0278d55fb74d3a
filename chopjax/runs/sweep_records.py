"""Records of `chopjax sweep`: WORKDIR/points.jsonl, a row a point, appended as it finishes, and
WORKDIR/analysis-SEED/analysis.json.

What has only begun is not written down: the training run of a point knows itself how far it came.
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

_ROW: dict[str, type | tuple[type, ...]] = {
    "strategy": str,
    "seed": int,
    "key": str,
    "remove": int,
    "keep": str,
    "healed": bool,
    "accuracy": dict,
    "chance": dict,
}
_NUMBERS = ("loss", "perplexity", "bits_per_byte", "loss_over_log_vocabulary", "tokens")


class PointRecords:
    """points.jsonl: every point that was ever done here, by its stage's name and its fingerprint,
    which the row has as `key`.

    figures: fingerprint → the row of a model with these figures, whichever point it was.
    """

    def __init__(self, path: Path):
        """Cuts off what a killed run left of a line."""
        self.path = path
        whole = _whole_lines(path)
        if path.exists() and path.stat().st_size > len(whole.encode()):
            with new_file(path, overwrite=True) as temporary:
                temporary.write_text(whole)
        rows = read_rows(path)
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
    return [json.loads(line) for line in _whole_lines(path).splitlines()]


def _whole_lines(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        text = path.read_text()
        end = text.rfind("\n") + 1
        for number, line in enumerate(text[:end].splitlines(), 1):
            if not _is_row(json.loads(line)):
                raise ValueError(f"line {number} is not a point of a sweep")
        if not text[end:].startswith('{"loss": '[: len(text) - end]):
            raise ValueError("the last line is not a point of a sweep")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({error}). Delete the line, or move the file away to measure all "
            "points again."
        ) from error
    return text[:end]


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), kind) for name, kind in _ROW.items())
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
            f"{path}: {error.strerror}. The points before this one are safe; make room or mend "
            "the folder, then start again."
        ) from error


class AnalysisRecords:
    """analysis.json, with what it was asked of as `asked`. One with more measures than are needed
    serves as well."""

    def __init__(self, path: Path, measures: Sequence[str]):
        self.path, self.measures = path, measures

    def find(self, stage: Stage, fingerprints: Sequence[str]) -> Record | None:
        if not is_taken(self.path):
            return None
        try:
            found = json.loads(self.path.read_bytes())
            measures = found["settings"]["measures"]
            sound = isinstance(found["asked"], dict) and isinstance(measures, list)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise UserError(f"{self.path}: not what a sweep writes, or damaged; move it away")
        if not set(self.measures) <= set(measures):
            return None
        return Record(digest(found["asked"]), found["asked"], found)

    def write(self, stage: Stage, record: Record) -> None:
        if record.result is not None:
            with new_file(self.path, overwrite=True) as temporary:
                content = record.result | {"asked": record.settings}
                temporary.write_text(json.dumps(content, indent=1) + "\n")
