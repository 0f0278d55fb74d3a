"""A sweep's points, put together: means and spreads over seeds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
Cell = tuple[float, float | None, int]  # mean, standard deviation over seeds, number of seeds
# Of a model, the least first: chopped and no more, repaired without training, healed.
CHOPPED, REPAIRED, HEALED, BOTH = "chopped", "repaired", "healed", "repaired and healed"
STATES = (CHOPPED, REPAIRED, HEALED, BOTH)
Cells = dict[tuple[str, str], dict[int, Cell]]


def state_of(row: Row) -> str:
    """One of STATES. Rows of an earlier chopjax say nothing of repairs."""
    if row.get("repaired"):
        return BOTH if row["healed"] else REPAIRED
    return HEALED if row["healed"] else CHOPPED


def summary(report: Mapping[str, Any], value: str | Callable[[Row], float]) -> Cells:
    """(strategy, state) → layers removed → mean and spread over seeds."""
    get = value if callable(value) else lambda row: row[value]

    def group(row: Row) -> tuple[str, str, int]:
        return row["strategy"], state_of(row), row["remove"]

    cells: Cells = {}
    for (strategy, state, remove), group_rows in itertools.groupby(
        sorted(report["points"], key=group), group
    ):
        values = [get(row) for row in group_rows]
        spread = statistics.stdev(values) if len(values) > 1 else None
        cell = (statistics.fmean(values), spread, len(values))
        cells.setdefault((strategy, state), {})[remove] = cell
    return cells


def strategies_of(report: Mapping[str, Any]) -> list[str]:
    """In the order of the sweep."""
    return list(dict.fromkeys(row["strategy"] for row in report["points"]))


def mean_accuracy(row: Row) -> float:
    """Over the tasks."""
    return statistics.fmean(value for value, _ in row["accuracy"].values())
