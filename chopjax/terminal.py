"""What goes to standard output: tables for people, JSON for programs.

Paths and names come from users and from checkpoints of strangers: nothing in them is taken for
markup. Control characters in them are for `errors.escaped`.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from chopjax.errors import decoded

UNLIMITED = 10_000  # columns of a file or a pipe
TITLE = 18  # columns of a title, where there is no room


def console(**options: Any) -> Console:
    """Prints text as it is: no markup, no emoji codes, no colours by guess."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def show(table: Table, groups: Sequence[int] = ()) -> None:
    """Print a table so that it can be read: numbers are never folded or cut.

    On a terminal (or with COLUMNS set) what is too wide folds its first column and its titles, and
    then comes in parts below each other, each with the first column; elsewhere a row is a line.
    groups: how many columns after the first belong together; those that are left, to none.
    """
    screen = console()
    width = screen.width if screen.is_terminal or "COLUMNS" in os.environ else UNLIMITED
    for number, part in enumerate(_fitted(table, groups, width)):
        if number:
            screen.print()
        needed = _natural_width(part)
        console(width=max(width, needed) if width != UNLIMITED else needed).print(part, crop=False)


def _natural_width(table: Table) -> int:
    return console(width=UNLIMITED).measure(table).maximum


def _fitted(table: Table, groups: Sequence[int], width: int) -> Iterator[Table]:
    if _natural_width(table) <= width:
        yield table
        return
    first, *others = table.columns
    first.overflow, first.no_wrap, first.max_width = "fold", False, max(12, width // 3)
    for column in others:
        column.header = "\n".join(textwrap.wrap(str(column.header), TITLE))
    taken: list[int] = []
    for group in _grouped(len(others), groups):
        if taken and _natural_width(_part(table, [*taken, *group])) > width:
            yield _part(table, taken)
            taken = []
        for place in group:  # one by one, where even the group is too wide
            if taken and _natural_width(_part(table, [*taken, place])) > width:
                yield _part(table, taken)
                taken = []
            taken.append(place)
    yield _part(table, taken)


def _grouped(columns: int, groups: Sequence[int]) -> list[list[int]]:
    """The places of the columns after the first, by group."""
    places = iter(range(1, columns + 1))
    grouped = [list(itertools.islice(places, size)) for size in groups]
    return grouped + [[place] for place in places]


def _part(table: Table, places: Sequence[int]) -> Table:
    """The first column and some others."""
    part = copy.copy(table)
    part.columns = [
        dataclasses.replace(table.columns[place], _index=index)
        for index, place in enumerate([0, *places])
    ]
    return part


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    print(to_json(value))


def to_json(value: Any) -> str:
    """JSON that every program reads: NaN and infinity, which it does not have, become null."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return decoded(value)
    return value
