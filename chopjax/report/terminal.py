"""Tables on standard output."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

UNLIMITED = 10_000  # columns of a file or a pipe


def show(table: Table) -> None:
    """Print a table so that it can be read: numbers are never folded or cut.

    On a terminal (or with COLUMNS set) what is too wide folds its first column, and then comes in
    parts below each other, each with the first column; elsewhere a row is a line.
    """
    console = Console()
    width = console.width if console.is_terminal or "COLUMNS" in os.environ else UNLIMITED
    for number, part in enumerate(_fitted(table, width)):
        if number:
            console.print()
        needed = _natural_width(part)
        Console(width=max(width, needed) if width != UNLIMITED else needed).print(part, crop=False)


def _natural_width(table: Table) -> int:
    return Console(width=UNLIMITED).measure(table).maximum


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
