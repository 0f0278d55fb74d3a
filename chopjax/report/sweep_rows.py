"""A sweep's points, put together: means and spreads over seeds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
Cell = tuple[float, float | None, int]  # mean, standard deviation over seeds, number of seeds
Cells = dict[tuple[str, bool], dict[int, Cell]]


def summary(report: Mapping[str, Any], value: str | Callable[[Row], float]) -> Cells:
    """(strategy, healed) → layers removed → mean and spread over seeds."""
    get = value if callable(value) else lambda row: row[value]

    def group(row: Row) -> tuple[str, bool, int]:
        return row["strategy"], row["healed"], row["remove"]

    cells: Cells = {}
    for (strategy, healed, remove), group_rows in itertools.groupby(
        sorted(report["points"], key=group), group
    ):
        values = [get(row) for row in group_rows]
        spread = statistics.stdev(values) if len(values) > 1 else None
        cell = (statistics.fmean(values), spread, len(values))
        cells.setdefault((strategy, healed), {})[remove] = cell
    return cells


def strategies_of(report: Mapping[str, Any]) -> list[str]:
    """In the order of the sweep."""
    return list(dict.fromkeys(row["strategy"] for row in report["points"]))


def mean_accuracy(row: Row) -> float:
    """Over the tasks."""
    return statistics.fmean(value for value, _ in row["accuracy"].values())
