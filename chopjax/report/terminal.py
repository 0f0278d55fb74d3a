"""What goes to standard output: tables for people, JSON for programs.

Paths and names come from users and from checkpoints of strangers: nothing in them is taken for
markup. Control characters in them are for `errors.escaped`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from rich.console import Console
from rich.table import Table

from chopjax.errors import decoded


def console(**options: Any) -> Console:
    """Prints text as it is: no markup, no emoji codes, no colours by guess."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def show(table: Table) -> None:
    """Print a table as wide as it is: folded or cut, numbers are of no use."""
    needed = console(width=10_000).measure(table).maximum
    console(width=max(console().width, needed)).print(table, crop=False)


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
