"""Models side by side by what they cost and what they are worth: the columns of Just CHOP's tables
(arXiv 2305.14864), mean accuracy with its relative drop, perplexity, size and latency.

What is known of a model depends on where it was measured; the rest is a dash:

    a results file      accuracies and perplexities; size, where `chopjax score` wrote it; latency,
                        where it lies in the workdir of a `chopjax run`
    a sweep's workdir   size, perplexities and accuracies of all points, the mean over seeds;
                        latency, where the sweep was asked for it
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from chopjax.errors import UserError
from chopjax.report.own_files import read_report
from chopjax.report.results_file import Results
from chopjax.report.sweep_rows import ACCURACY, CHOPPED, Row, state_of, tasks_of
from chopjax.report.task_table import Table

HELD_OUT = "held-out text"  # of a sweep
PERPLEXITIES = ("perplexity,none", "word_perplexity,none")
SIZES = ("parameters", "not_zero", "bytes")
# What comes of a report whose fields are not as they were written.
WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclasses.dataclass(frozen=True)
class Model:
    """The first of several is the parent. accuracies: task → value, or one mean that a suite has.
    size: of SIZES what is known. speed_up: how many times as long a forward pass of the parent
    took, in turns with the model's."""

    name: str
    size: Mapping[str, float]
    perplexities: Mapping[str, float]  # by text
    accuracies: Mapping[str, float]
    latency_seconds: float | None = None
    speed_up: float | None = None


def of_results(table: Table, files: Sequence[Results]) -> list[Model]:
    """The models of a table of tasks."""
    means = [row for row in table.rows if row.metric == "mean"]
    rows = means or [row for row in table.rows if row.metric.startswith("acc")]
    models = []
    for number, (name, file) in enumerate(zip(table.models, files, strict=True)):
        accuracies = {row.task: cell.value for row in rows if (cell := row.cells[number])}
        perplexities = {
            task: metrics[key]
            for task in file.results
            for metrics in [file.metrics(task)]
            for key in PERPLEXITIES
            if key in metrics
        }
        size, latency = _size(file.content), _latency(file.path)
        models.append(Model(name, size, perplexities, accuracies, *latency))
    return models


def _size(content: Mapping[str, Any]) -> dict[str, float]:
    count = (content.get("config") or {}).get("model_num_parameters")
    known = {"parameters": count} if isinstance(count, int) else {}
    return known | (content.get("model_size") or {})


def _latency(path: Path) -> tuple[float | None, float | None]:
    """Latency and speed-up, where the file is WORKDIR/scores/NAME/MODEL/results_….json of a run."""
    if len(path.parents) < 4 or path.parents[2].name != "scores":
        return None, None
    place = path.parents[3] / "report.json"
    if (report := read_report(place, "models")) is None:  # of another program, or none
        return None, None
    try:
        seconds = {name: each.get("latency_seconds") for name, each in report["models"].items()}
        known = {name: float(s) for name, s in seconds.items() if s is not None}
        if (own := known.get(path.parents[1].name)) is None:
            return None, None
        return own, known["parent"] / own if "parent" in known else None
    except (*WRONG, ZeroDivisionError):
        raise UserError(
            f"{place}: not the report of a `chopjax run`, where {path} lies as in the workdir of "
            "one; start the run again, which writes it anew, or move it away"
        ) from None


def of_workdir(folder: Path) -> list[Model] | None:
    """Of a sweep's workdir; None for any other folder. Raises UserError where its report is not as
    a sweep writes it."""
    path = folder / "report.json"
    if (report := read_report(path, "points")) is None:
        return None
    try:
        return of_sweep(report)
    except WRONG as error:
        raise UserError(
            f"{path}: not as `chopjax sweep` writes it ({error!r}); start the sweep again, which "
            "writes it anew from its points"
        ) from None


def of_sweep(report: Mapping[str, Any]) -> list[Model]:
    """Parent and points, in the order in which they were done; seeds put together."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in report["points"]:
        groups.setdefault((row["strategy"], row["remove"], state_of(row)), []).append(row)
    models = [_of_rows("parent", [report["parent"]])]
    for (strategy, remove, state), rows in groups.items():
        removed = f", {remove} of {report['num_layers']} removed" if remove else ""
        named = f"{strategy}{removed}" + ("" if state == CHOPPED else f", {state}")
        models.append(_of_rows(named, rows))
    return models


def _of_rows(name: str, rows: Sequence[Row]) -> Model:
    first = rows[0]
    texts = {text: _mean(rows, "texts", text, "perplexity") for text in first.get("texts", {})}
    return Model(
        name,
        {key: _mean(rows, key) for key in SIZES if all(key in row for row in rows)},
        {HELD_OUT: _mean(rows, "perplexity")} | texts,
        {t: _mean(rows, "accuracy", t, 0) for t in tasks_of(first).get(ACCURACY, ())},
        *(
            _mean(rows, "latency", key) if all("latency" in row for row in rows) else None
            for key in ("seconds", "speed_up")
        ),
    )


def _mean(rows: Sequence[Row], *keys: Any) -> float:
    """Over rows, of the number under these keys."""
    return statistics.fmean(_under(row, keys) for row in rows)


def _under(row: Any, keys: Sequence[Any]) -> float:
    for key in keys:
        row = row[key]
    return float(row)


# ------------------------------------------------------------------------------------ The table


def shared_tasks(models: Sequence[Model]) -> list[str]:
    """Those that every model with accuracies has: what means are over."""
    scored = [model.accuracies for model in models if model.accuracies]
    first = scored[0] if scored else {}
    return [task for task in first if all(task in others for others in scored)]


def mean_accuracy(model: Model, tasks: Sequence[str]) -> float | None:
    """None where the model has not done them."""
    if not tasks or not model.accuracies:
        return None
    return statistics.fmean(model.accuracies[task] for task in tasks)


def relative_drop(model: Model, parent: Model, tasks: Sequence[str]) -> float | None:
    """Of the mean accuracy, as a share of the parent's."""
    own, whole = mean_accuracy(model, tasks), mean_accuracy(parent, tasks)
    return None if own is None or not whole else 1 - own / whole


def cells(models: Sequence[Model]) -> list[list[str]]:
    """Header and rows; of accuracies none where nobody has any."""
    parent, tasks = models[0], shared_tasks(models)
    texts = list(dict.fromkeys(text for model in models for text in model.perplexities))
    header = ["model", "parameters", "not zero", "bytes", *(f"{t}, perplexity" for t in texts)]
    if tasks:
        mean = f"mean of {len(tasks)} tasks" if len(tasks) > 1 else tasks[0]
        header += [mean, "relative drop"]
    lines = [[*header, "forward, ms", "speed-up"]]
    for model in models:
        line = [model.name, *(_shown(model.size.get(key), "{:,.0f}") for key in SIZES)]
        line += [_shown(model.perplexities.get(text), "{:.2f}") for text in texts]
        if tasks:
            drop = _shown(relative_drop(model, parent, tasks), "{:.1%}")
            line.append(_shown(mean_accuracy(model, tasks), "{:.4f}"))
            line.append("" if model is parent else drop)
        seconds = model.latency_seconds
        line.append(_shown(None if seconds is None else 1e3 * seconds, "{:.1f}"))
        line.append(_shown(model.speed_up, "{:.2f}x"))
        lines.append(line)
    return lines


def _shown(value: float | None, number: str) -> str:
    return "–" if value is None else number.format(value)


def rich_table(models: Sequence[Model]) -> RichTable:
    header, *rows = cells(models)
    shown = RichTable(box=None, header_style="bold")
    for number, title in enumerate(header):
        shown.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


def legend(models: Sequence[Model]) -> str:
    """What the columns are, for below the table."""
    said = []
    if tasks := shared_tasks(models):
        over = f"over {', '.join(tasks)}, which all have done"
        said.append(f"Relative drop: of the mean accuracy {over}, from {models[0].name}.")
    said.append("Zeros take the room that numbers take.")
    if any(model.latency_seconds is not None for model in models):
        said.append("Forward: the time of a forward pass; speed-up: of the parent's, in turns.")
    return " ".join(said)


def as_json(models: Sequence[Model]) -> list[dict[str, Any]]:
    tasks = shared_tasks(models)
    return [
        {
            **dataclasses.asdict(model),
            "mean_accuracy": mean_accuracy(model, tasks),
            "relative_drop": relative_drop(model, models[0], tasks),
        }
        for model in models
    ]
