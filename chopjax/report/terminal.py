"""What goes to standard output: tables for people, JSON for programs.

Paths and names come from users and from checkpoints of strangers: nothing in them is taken for
markup. Control characters in them are for `errors.escaped`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

UNLIMITED = 10_000  # columns of a file or a pipe


def console(**options: Any) -> Console:
    """Prints text as it is: no markup, no emoji codes, no colours by guess."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def show(table: Table) -> None:
    """Print a table so that it can be read: numbers are never folded or cut.

    On a terminal (or with COLUMNS set) what is too wide folds its first column, and then comes in
    parts below each other, each with the first column; elsewhere a row is a line.
    """
    screen = console()
    width = screen.width if screen.is_terminal or "COLUMNS" in os.environ else UNLIMITED
    for number, part in enumerate(_fitted(table, width)):
        if number:
            screen.print()
        needed = _natural_width(part)
        console(width=max(width, needed) if width != UNLIMITED else needed).print(part, crop=False)


def _natural_width(table: Table) -> int:
    return console(width=UNLIMITED).measure(table).maximum


def _fitted(table: Table, width: int) -> Iterator[Table]:
    if _natural_width(table) <= width:
        yield table
        return
    first, *others = range(len(table.columns))
    table.columns[first].overflow = "fold"
    table.columns[first].no_wrap = False
    table.columns[first].max_width = max(12, width // 3)
    while others:
        taken = [others.pop(0)]
        while others and _natural_width(_part(table, [first, *taken, others[0]])) <= width:
            taken.append(others.pop(0))
        yield _part(table, [first, *taken])


def _part(table: Table, places: list[int]) -> Table:
    """Some of the columns."""
    part = copy.copy(table)
    part.columns = [
        dataclasses.replace(table.columns[place], _index=index)
        for index, place in enumerate(places)
    ]
    return part


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    print(to_json(value))


def to_json(value: Any) -> str:
    """JSON that every program reads: NaN and infinity, which it does not have, become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
