"""Models by tasks: values, differences from the first model, and how sure they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chopjax.errors import UserError
from chopjax.report import paired
from chopjax.report.results_file import Items, Results, choose_metric, read_items


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model on a task. What is None is not known."""

    value: float
    stderr: float | None
    difference: float | None = None  # from the first model
    interval: tuple[float, float] | None = None  # 95 %, of the difference
    p: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    task: str
    metric: str
    higher_is_better: bool
    chance: float | None
    documents: int | None
    cells: list[Cell | None]  # one a model; None: has not done the task


@dataclasses.dataclass(frozen=True)
class Table:
    models: list[str]
    rows: list[Row]
    notes: list[str]


@np.errstate(all="ignore")  # a file may hold infinity
def compare(files: Sequence[Results], metric: str | None = None) -> Table:
    """All tasks of all files. The first file is what the others are compared with.

    metric: instead of each task's usual one. Raises UserError where no task has it.
    """
    notes = [
        f"{file.path}: no samples files beside it, so its differences have no significance "
        "(score with --log-samples)"
        for file in files
        if not file.samples
    ]
    pairs = _Pairs(files, notes)
    rows = []
    for task in _shown(files):
        row = _row(files, task, metric, pairs)
        if row is not None:
            rows.append(row)
    if not rows:
        what = f"metric {metric}" if metric else "metrics"
        raise UserError(f"{', '.join(str(file.path) for file in files)}: no task with {what}")
    return Table(_labels([file.model for file in files], files), rows, list(dict.fromkeys(notes)))


def _shown(files: Sequence[Results]) -> list[str]:
    """Tasks and aggregated groups; not the tasks and groups inside an aggregated group, unless
    its value is a mean of different metrics: there, each is of interest."""
    hidden: set[str] = set()
    names: dict[str, None] = {}
    for file in files:
        names |= dict.fromkeys(file.results)
        for group, children in (file.content.get("group_subtasks") or {}).items():
            if file.metrics(group) and "mean,none" not in file.metrics(group):
                hidden |= {*children, *file.leaves(group)} - {group}
    shown = [name for name in names if name not in hidden]
    means = [n for n in shown if any("mean,none" in file.metrics(n) for file in files)]
    return [name for name in shown if name not in means] + means


def _row(files: Sequence[Results], task: str, metric: str | None, pairs: _Pairs) -> Row | None:
    keys = [list(file.metrics(task)) for file in files]
    first = next((names for names in keys if names), None)
    key = None if first is None else choose_metric(first, metric)
    if key is None:
        return None
    cells: list[Cell | None] = []
    for file, names in zip(files, keys, strict=True):
        cells.append(
            Cell(file.metrics(task)[key], file.stderr(task, key)) if key in names else None
        )
    base = cells[0]
    for number, cell in enumerate(cells):
        if number and cell is not None and base is not None:
            drawn_B = pairs.drawn(number, task, key)
            cells[number] = dataclasses.replace(
                cell,
                difference=cell.value - base.value,
                interval=None if drawn_B is None else paired.interval(drawn_B),
                p=None if drawn_B is None else paired.p_value(drawn_B),
            )
    known = next(file for file, cell in zip(files, cells, strict=True) if cell is not None)
    samples = (known.content.get("n-samples") or {}).get(task) or {}
    return Row(
        task=task,
        metric=key.removesuffix(",none"),
        higher_is_better=known.higher_is_better(task, key),
        chance=(known.content.get("chance") or {}).get(task),
        documents=samples.get("effective"),
        cells=cells,
    )


class _Pairs:
    """Resampled differences from the first model, of tasks and of groups made of them."""

    def __init__(self, files: Sequence[Results], notes: list[str]):
        self.files, self.notes = files, notes
        self._items: dict[tuple[int, str, str], Items | None] = {}

    def drawn(self, number: int, task: str, key: str) -> np.ndarray | None:
        """[B] for a model, or None where the documents cannot be paired; a note says why."""
        base, other = self.files[0], self.files[number]
        if not base.samples or not other.samples:
            return None
        if not (other.content.get("group_subtasks") or {}).get(task):
            return self._task(number, task, key)
        leaves = other.leaves(task)
        if leaves != base.leaves(task):
            self.notes.append(f"{task}: {other.path} has other tasks in it; not paired")
            return None
        weights = _weights(other, task, key)
        parts = [self._task(number, leaf, own) for leaf, own in self._parts(other, task, key)]
        if weights is None or any(part is None for part in parts):
            return None
        return np.average(np.stack([part for part in parts if part is not None]), 0, weights)

    def _parts(self, file: Results, group: str, key: str) -> list[tuple[str, str]]:
        mixed: Mapping[str, str] = file.results[group].get("mean_of") or {}
        return [
            (leaf, f"{mixed[leaf]},none" if leaf in mixed else key) for leaf in file.leaves(group)
        ]

    def _task(self, number: int, task: str, key: str) -> np.ndarray | None:
        base, other = self._read(0, task, key), self._read(number, task, key)
        if base is None or other is None:
            return None
        trouble = mismatch(base, other)
        if trouble:
            path = self.files[number].path
            self.notes.append(f"{task}: not paired with {path}: {trouble}")
            return None
        return paired.differences(base, other)

    def _read(self, number: int, task: str, key: str) -> Items | None:
        place = (number, task, key)
        if place not in self._items:
            self._items[place] = self._checked(self.files[number], task, key)
        return self._items[place]

    def _checked(self, file: Results, task: str, key: str) -> Items | None:
        path = file.samples.get(task)
        if path is None:
            self.notes.append(f"{task}: no samples file beside {file.path}")
            return None
        items = read_items(path, key)
        if items is None:
            self.notes.append(f"{task}: {key} is not a sum over documents; no significance")
            return None
        value = float(items.statistic(items.columns_DC.sum(axis=0)))
        said = file.metrics(task).get(key)
        if said is None or not abs(value - said) <= 1e-6 * max(1.0, abs(said)):
            self.notes.append(f"{path}: its samples give {value:.6g}, {file.path} says {said}")
            return None
        return items


def mismatch(base: Items, other: Items) -> str | None:
    """Why two models' documents cannot be paired, if so."""
    if base.hashes.keys() != other.hashes.keys():
        return f"{len(base.hashes)} documents against {len(other.hashes)}" + (
            "" if len(base.hashes) != len(other.hashes) else ", and other ones"
        )
    if list(base.hashes) != list(other.hashes):
        return "the documents come in another order"
    changed = [
        [mine[place] != theirs[place] for place in range(3)]
        for mine, theirs in zip(base.hashes.values(), other.hashes.values(), strict=True)
    ]
    documents, prompts, targets = np.array(changed).reshape(-1, 3).sum(axis=0)
    if documents or targets:
        return f"{max(documents, targets)} of {len(changed)} documents differ"
    if prompts:
        return f"{prompts} of {len(changed)} prompts differ (examples, or another task file)"
    return None


def _weights(file: Results, group: str, key: str) -> np.ndarray | None:
    """What each task counts for in the value of its group: its documents, or all the same."""
    if "mean_of" in file.results[group]:
        return np.ones(len(file.leaves(group)))
    leaves = file.leaves(group)
    values = np.array([file.metrics(leaf).get(key, np.nan) for leaf in leaves])
    counts = [file.results.get(leaf, {}).get("sample_len") or 0 for leaf in leaves]
    sizes = np.array(counts, np.float64)
    for weights in (sizes, np.ones_like(sizes)):
        if not weights.sum() > 0:
            continue
        mean = np.average(values, weights=weights)
        if abs(mean - file.metrics(group)[key]) < 1e-9:
            return weights
    return None


def _labels(models: Sequence[str], files: Sequence[Results]) -> list[str]:
    """The shortest names that tell the models apart."""
    last = [Path(model).name or model for model in models]
    for names in (last, list(models)):
        if len(set(names)) == len(names):
            return list(names)
    return [f"{name} ({file.path.stem})" for name, file in zip(last, files, strict=True)]


def as_json(table: Table, files: Sequence[Results]) -> dict[str, Any]:
    return {
        "models": [
            {"name": name, "model": file.model, "file": str(file.path)}
            for name, file in zip(table.models, files, strict=True)
        ],
        "tasks": [dataclasses.asdict(row) for row in table.rows],
        "significance": f"paired bootstrap over documents, {paired.RESAMPLES:,} resamples, "
        f"seed {paired.SEED}, against the first model; p not corrected for the number of tasks",
        "notes": table.notes,
    }
