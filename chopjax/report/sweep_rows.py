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
ACCURACY, MATCH = "accuracy", "exact match"  # see tasks_of
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


def tasks_of(row: Row) -> dict[str, list[str]]:
    """What a share of right answers is called → the tasks: "accuracy" where answers are chosen,
    "exact match" where they are written, which nobody guesses. The second falls long before the
    first when layers go, so that no mean is taken over both."""
    kinds: dict[str, list[str]] = {ACCURACY: [], MATCH: []}
    for task in row["accuracy"]:
        kinds[MATCH if row["chance"].get(task) == 0 else ACCURACY].append(task)
    return {kind: tasks for kind, tasks in kinds.items() if tasks}


def untrained(report: Mapping[str, Any]) -> dict[str, str]:
    """Strategy → the format of its weights, which is not trained."""
    return {row["strategy"]: row["weights"] for row in report["points"] if "weights" in row}


def plain_state(row: Row) -> str:
    """What a table calls a model that nothing was done to after it was made."""
    kind = row.get("weights")
    return (CHOPPED if row["remove"] else "not healed") + (
        f", {kind} is not trained" if kind else ""
    )


def mean_accuracy(row: Row, kind: str = ACCURACY) -> float:
    """Over the tasks of a kind."""
    return statistics.fmean(row["accuracy"][task][0] for task in tasks_of(row)[kind])


def mean_accuracy_error(row: Row, kind: str = ACCURACY) -> float | None:
    """The standard error of that mean, tasks being independent; None where a task has none."""
    errors = [row["accuracy"][task][1] for task in tasks_of(row)[kind]]
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(errors) if known and len(known) == len(errors) else None
