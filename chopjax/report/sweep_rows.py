"""A sweep's points, put together: means and spreads over seeds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
Cell = tuple[float, float | None, int]  # mean, standard deviation over seeds, number of seeds
# Of a model: chopped and no more, repaired without training, healed. What is neither goes by the
# name of its method.
CHOPPED, REPAIRED, HEALED, BOTH = "chopped", "repaired", "healed", "repaired and healed"
_BY_METHOD = {"": CHOPPED, "repair": REPAIRED, "full": HEALED, "repair+full": BOTH}
Cells = dict[tuple[str, str], dict[int, Cell]]


def method_of(row: Row) -> str:
    """Rows of an earlier chopjax say nothing of methods, and older ones nothing of repairs."""
    if "method" in row:
        return str(row["method"])
    parts = ("repair" if row.get("repaired") else "", "full" if row["healed"] else "")
    return "+".join(filter(None, parts))


def state_of(row: Row) -> str:
    """What a table calls it."""
    return state_named(method_of(row))


def state_named(method: str) -> str:
    """What a table calls the models of a method."""
    return _BY_METHOD.get(method, method)


def states_of(report: Mapping[str, Any]) -> list[str]:
    """Those that there are, the least first: what is trained stands behind what is not."""
    found = dict.fromkeys(map(state_of, report["points"]))
    others = [state for state in found if state not in _BY_METHOD.values()]
    order = (CHOPPED, REPAIRED, *others, HEALED, BOTH)
    return [state for state in order if state in found]


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


def mean_accuracy_error(row: Row) -> float | None:
    """The standard error of that mean, tasks being independent; None where a task has none."""
    errors = [error for _, error in row["accuracy"].values()]
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(errors) if known and len(known) == len(errors) else None
