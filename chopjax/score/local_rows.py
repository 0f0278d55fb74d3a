"""JSON lines as a data set: every column of every row, each of one type."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import datasets

from chopjax.errors import UserError


class Row(NamedTuple):
    line: int  # in the file, from 1
    columns: dict[str, Any]


def read_rows(path: Path, of_subject: str | None = None) -> datasets.Dataset:
    """The objects of a file, with the columns of all of them: what a row lacks is None, as
    datasets' own reader has it.

    of_subject: only rows with this value of `subject`. Raises UserError that names the line which
    is no object, or has another type in a column than the lines before it.
    """
    rows = _of(path, of_subject)
    if not rows:
        raise UserError(f"{path}: no rows{f' of subject {of_subject}' if of_subject else ''}")
    columns = list(rows[0].columns)
    return datasets.Dataset.from_dict(
        {name: [row.columns[name] for row in rows] for name in columns}
    )


def check_present(path: Path, of_subject: str | None, columns: Iterable[str]) -> None:
    """Raises UserError for a row in which one of these columns is null, or has a null inside."""
    for row in _of(path, of_subject):
        for name in columns:
            if _has_null(row.columns.get(name)):
                raise UserError(f"{path}, line {row.line}: {name} is missing or has a null in it")


def _has_null(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return any(map(_has_null, value.values() if isinstance(value, dict) else value))
    return value is None


def _of(path: Path, subject: str | None) -> list[Row]:
    rows = _rows(path, path.stat().st_mtime_ns)
    return [row for row in rows if subject is None or row.columns.get("subject") == subject]


@functools.lru_cache(maxsize=4)  # MMLU's subjects share a file
def _rows(path: Path, modified: int) -> tuple[Row, ...]:
    del modified  # part of the cache's key
    rows, kind = [], None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=_refuse)
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
                kind = _merged(kind, _kind(row), "")
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: {error}") from None
            rows.append(Row(number, row))
    columns = kind or {}
    return tuple(Row(line, {name: row.get(name) for name in columns}) for line, row in rows)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# None, "text", "number", "true or false", [kind of the elements], {key: kind}
Kind = Any


def _kind(value: Any) -> Kind:
    if isinstance(value, dict):
        return {key: _kind(inner) for key, inner in value.items()}
    if isinstance(value, list):
        inner = None
        for element in value:
            inner = _merged(inner, _kind(element), "a list")
        return [inner]
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair is no text
        return "text"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"a whole number of more than 64 bits: {str(value)[:40]}…")
    return None if value is None else "number"


def _merged(old: Kind, new: Kind, where: str) -> Kind:
    """The kind that has both. Raises ValueError where none does. where: the column, for that."""
    if old is None or new is None or old == new:
        return new if old is None else old
    if isinstance(old, dict) and isinstance(new, dict):
        names = old | new
        return {
            name: _merged(old.get(name), new.get(name), f"{where}.{name}" if where else name)
            for name in names
        }
    if isinstance(old, list) and isinstance(new, list):
        return [_merged(old[0], new[0], where)]
    raise ValueError(f"{where or 'the row'} is {_named(new)} here and {_named(old)} before")


def _named(kind: Kind) -> str:
    return "an object" if isinstance(kind, dict) else "a list" if isinstance(kind, list) else kind
