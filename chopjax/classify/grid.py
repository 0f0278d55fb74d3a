"""`chopjax classify`: layers cut off, the rest taught to classify, many times over.

The parent is read once, and of it the layers that any cell keeps; a depth slices them in memory.
What is compiled for a depth, method and head serves all seeds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chopjax.checkpoint.identity import of_description
from chopjax.checkpoint.load import load
from chopjax.chop.surgery import chop_params
from chopjax.classify import metrics, results, saving
from chopjax.classify.depth import Counted, Depth, run_cell
from chopjax.classify.learner import count
from chopjax.classify.settings import Cell, choice_of
from chopjax.classify.task import PARTS, Task
from chopjax.classify.training import Trained
from chopjax.classify.ways import VIRTUAL_TOKENS, trains
from chopjax.keep import Keep, ranges
from chopjax.models import parameters
from chopjax.progress import Bar, progress, say


class Outcome(NamedTuple):
    """A row of results.json, and what was trained for it; None for nothing."""

    cell: Cell
    row: results.Row
    trained: Trained | None


def classify(
    task: Task, conditions: dict[str, Any], wanted: Sequence[Cell], folder: Path
) -> tuple[results.Results, Outcome | None]:
    """Do the cells that are missing in the folder's results. Returns all of these, and of what was
    done now the best on held-out examples."""
    description = task.description
    about = {
        "name": description.name,
        "revision": description.revision,
        "num_layers": description.config.num_layers,
        "parameters": parameters.count(description.config),
        "fingerprint": of_description(description),
    }
    known = results.begin(folder, about, task.template.name, conditions)
    missing = [cell for cell in wanted if results.find(known, _row_key(task, cell)) is None]
    if not missing:
        return known, None
    best: Outcome | None = None
    union = tuple(sorted({layer for cell in missing for layer in cell.keep}))
    parent = load(description, keep=union, dtype="float32").params
    shares = _shares(task, missing)
    with progress("classify", len(missing), "cells") as bar:
        for keep, own in _grouped(missing):
            depth = Depth(task, keep, chop_params(parent, tuple(map(union.index, keep))))
            for cell in own:
                outcome = _outcome(depth, known, cell, bar, shares[cell])
                results.add(folder, known, outcome.row)
                if best is None or _rank(outcome.row) > _rank(best.row):
                    best = outcome
    return known, best


def _rank(row: results.Row) -> tuple[float, int]:
    """By what is known without the test: accuracy on held-out examples, then few layers."""
    return row["held_out_accuracy"], -row["layers"]


def save_best(
    task: Task,
    wanted: Sequence[Cell],
    known: results.Results,
    done: Outcome | None,
    out: Path,
    overwrite: bool,
) -> Outcome:
    """Save the best cell of the grid; returns it. done: what is in memory, if it is of that cell;
    what an earlier call trained is trained again, from its seed."""
    rows = {cell: results.find(known, _row_key(task, cell)) for cell in wanted}
    found = {cell: row for cell, row in rows.items() if row is not None}
    cell = max(found, key=lambda cell: _rank(found[cell]))
    description, row = task.description, found[cell]
    depth = Depth(task, cell.keep, load(description, keep=cell.keep, dtype="float32").params)
    trained: Trained | None = None
    if done is not None and done.trained is not None and done.cell[1:] == cell[1:]:
        trained = done.trained
    elif trains(cell.method, cell.head):
        with progress(f"train the best again: {row['keep']}", 1, "cells") as bar:
            trained, figures = run_cell(depth, cell, Counted(bar, 1))
        if figures["accuracy"] != row["accuracy"]:
            say(
                f"note: trained again, its accuracy is {figures['accuracy']:.3f} and not "
                f"{row['accuracy']:.3f}: this device does not add up in the same order each time"
            )
            row = row | figures
    best = saving.Best(
        depth.question(cell),
        choice_of(task.settings, description, cell.strategy, len(cell.keep)),
        row,
        depth.params,
        {} if trained is None else trained.trainable,
        task.template,
        task.materials[cell.seed].before,
    )
    saving.save(description, best, out, overwrite)
    return Outcome(cell, row, trained)


def _grouped(missing: Sequence[Cell]) -> list[tuple[Keep, list[Cell]]]:
    """Cells that keep the same layers stand together, whatever strategy chose them."""
    groups: dict[Keep, list[Cell]] = {}
    for cell in missing:
        groups.setdefault(cell.keep, []).append(cell)
    return list(groups.items())


def _shares(task: Task, missing: Sequence[Cell]) -> dict[Cell, float]:
    """What each cell counts for in a bar of so many cells: by layers and examples, three times as
    much where they are trained on, all epochs."""

    def work(cell: Cell) -> float:
        sizes = {name: len(getattr(task.materials[cell.seed], name).ids) for name in PARTS}
        looked_at = sum(sizes.values())
        if cell.method != "none":
            looked_at += task.settings.training.epochs * (3 * sizes["train"] + sizes["held_out"])
        return float(len(cell.keep) * looked_at)

    each = {cell: work(cell) for cell in missing}
    total = sum(each.values())
    return {cell: len(missing) * own / total for cell, own in each.items()}


def _row_key(task: Task, cell: Cell) -> results.Row:
    """What tells a row apart, and what it was trained with."""
    settings = task.settings
    with_: dict[str, Any] = {}
    if trains(cell.method, cell.head):
        with_["learning_rate"] = settings.rate_of(cell.method)
    if cell.method == "lora":
        with_ |= {"rank": settings.rank, "targets": settings.targets}
    if cell.method == "prefix":
        with_["virtual_tokens"] = VIRTUAL_TOKENS
    return {
        "task": task.template.name,
        "strategy": cell.strategy,
        "keep": ranges(cell.keep),
        "method": cell.method,
        "head": cell.head,
        "seed": cell.seed,
        "settings": with_,
    }


def _outcome(depth: Depth, known: results.Results, cell: Cell, bar: Bar, share: float) -> Outcome:
    """A cell's row. Two strategies may keep the same layers: what is known is not done again."""
    row, counted = _row_key(depth.task, cell), Counted(bar, share)
    for other in known["rows"]:
        if all(other[name] == row[name] for name in row if name != "strategy"):
            counted.advance(1)
            return Outcome(cell, other | row, None)
    begun = time.monotonic()
    shown = {"layers": len(cell.keep), "method": cell.method, "head": cell.head, "seed": cell.seed}
    counted.advance(0, shown)
    trained, figures = run_cell(depth, cell, counted)
    counted.advance(1)
    labels_X = depth.task.materials[cell.seed].test.labels
    row |= {
        "layers": len(cell.keep),
        **figures,
        "seconds": time.monotonic() - begun,
        "trained_parameters": 0 if trained is None else count(trained.trainable),
        "kept_parameters": parameters.count(depth.config),
        "train_examples": len(depth.task.materials[cell.seed].train.ids),
        "test_examples": len(labels_X),
        "chance": 1 / len(depth.task.template.words),
        "majority": metrics.majority(labels_X),
    }
    return Outcome(cell, row, trained)
