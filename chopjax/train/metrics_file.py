"""metrics.jsonl on disk: what a killed writer leaves, and what is not one. No jax."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chopjax.disk.atomic import new_file
from chopjax.errors import UserError

METRICS = "metrics.jsonl"
_NOT_NUMBERS = ("nan", "inf", "-inf")  # are not JSON, and written as text

Row = dict[str, Any]


def read_metrics(workdir: Path) -> list[Row]:
    """The rows of WORKDIR/metrics.jsonl, in order; "step" in each, and numbers. None where there
    is no file. Raises UserError for one that a training run did not write."""
    return [row for _, row in _lines(workdir / METRICS)]


def cut_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a line that a kill cut off in the middle goes too."""
    if not path.exists():
        return
    kept = b"".join(line + b"\n" for line, row in _lines(path) if row["step"] <= step)
    if kept != path.read_bytes():
        with new_file(path, overwrite=True) as temporary:
            temporary.write_bytes(kept)


def _lines(path: Path) -> list[tuple[bytes, Row]]:
    if not path.exists():
        return []
    if not path.is_file():
        raise UserError(f"{path}: not a file; move it away, the run writes its measures there")
    *lines, last = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate([*lines, last], 1):
        row = _row(line)
        if row is not None:
            rows.append((line, row))
        elif number <= len(lines) and line.strip(b"\0"):  # zeros are what a power failure leaves
            raise UserError(
                f"{path}: line {number} is not one that a training run writes; mend it, or move "
                "the file away: checkpoints do without it"
            )
    return rows


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
        step = row["step"]
        row = {name: float(v) if v in _NOT_NUMBERS else v for name, v in row.items()}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    numbers = all(type(value) in (int, float) for value in row.values())
    return row if numbers and type(step) is int and step >= 0 else None
