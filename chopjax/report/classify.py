"""Why Lift so Heavy's table and figure (arXiv 2402.11700), from the rows of `chopjax classify`."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from chopjax.disk.atomic import new_file
from chopjax.disk.mark import some
from chopjax.errors import UserError
from chopjax.report import html
from chopjax.report.own_files import PAGE, figure_files, is_ours
from chopjax.report.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    hide_box,
    save,
)

Row = dict[str, Any]
FIGURE = "accuracy"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
MARKERS = "osD^vP"
LINE = ("task", "strategy", "method", "head")  # what the points of a line share


class Point(NamedTuple):
    """The rows of all seeds with the same layers."""

    line: tuple[str, ...]
    rows: list[Row]

    def mean(self, name: str) -> float:
        return statistics.fmean(row[name] for row in self.rows)

    def spread(self, name: str) -> float | None:
        """Standard deviation over seeds; None of a single one."""
        values = [row[name] for row in self.rows]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def layers(self) -> int:
        count: int = self.rows[0]["layers"]
        return count


def points(results: Mapping[str, Any]) -> list[Point]:
    """By line, then by layers; lines in the order in which they were measured."""
    rows = results["rows"]
    order = {line: place for place, line in enumerate(dict.fromkeys(map(_line, rows)))}

    def key(row: Row) -> tuple[int, int]:
        return order[_line(row)], row["layers"]

    ordered = sorted(rows, key=lambda row: (*key(row), row["seed"]))
    groups = (list(own) for _, own in itertools.groupby(ordered, key))
    return [Point(_line(own[0]), own) for own in groups]


def _line(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in LINE)


# ------------------------------------------------------------------------------------ Tables


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A line a task, strategy, method, head and number of layers, with means over seeds."""
    header = ["task", "layers", "strategy", "method", "head", "seeds", "accuracy", "macro-F1"]
    header += ["held-out", "parameters", "of parent", "trained"]
    whole = results["model"]["parameters"]
    body = []
    for point in points(results):
        task, strategy, method, head = point.line
        kept = point.rows[0]["kept_parameters"]
        body.append(
            [
                task,
                str(point.layers),
                strategy,
                method,
                head,
                str(len(point.rows)),
                *(_percent(point, name) for name in ("accuracy", "macro_f1", "held_out_accuracy")),
                f"{kept:,}",
                f"{kept / whole:.1%}",
                f"{point.rows[0]['trained_parameters']:,}",
            ]
        )
    return header, body


def rich_table(results: Mapping[str, Any]) -> Table:
    """For the terminal."""
    header, body = table(results)
    title = "accuracy and F1 in percent, mean ± standard deviation over seeds"
    result = Table(*header, box=None, title=title, title_justify="left")
    for column in result.columns[1:]:
        column.justify = "left" if column.header in LINE else "right"
    for line in body:
        result.add_row(*line)
    return result


def _percent(point: Point, name: str) -> str:
    spread = point.spread(name)
    return f"{100 * point.mean(name):.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


# ------------------------------------------------------------------------------------ Figure


def accuracy_figure(results: Mapping[str, Any]) -> Figure:
    """Accuracy against layers kept: a panel a task, a line a strategy, method and head, with the
    standard deviation over seeds; chance and the commonest class as lines."""
    all_points = points(results)
    tasks = list(dict.fromkeys(point.line[0] for point in all_points))
    lines = list(dict.fromkeys(point.line[1:] for point in all_points))
    figure = Figure(figsize=(1.5 + 4.4 * len(tasks), 4.3), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for place, line in enumerate(lines):
            own = [point for point in all_points if point.line == (task, *line)]
            if own:
                _draw(panel, own, place, _name(line, lines))
        rows = [row for point in all_points if point.line[0] == task for row in point.rows]
        majority = statistics.fmean(row["majority"] for row in rows)
        panel.axhline(100 * majority, color=GREY, linestyle="--", label="commonest class")
        panel.axhline(100 * rows[0]["chance"], color=GREY, linestyle=":", label="chance")
        panel.set_title(task)
        panel.set_xticks(sorted({row["layers"] for row in rows}))
        panel.set_xlabel("layers kept")
        panel.grid(alpha=0.25)
        hide_box(panel)
    panels[0].set_ylabel("accuracy (%)")
    named: dict[str, Any] = {}
    for panel in panels:
        handles, names = panel.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    figure.legend(
        list(named.values()), list(named), loc="outside upper center", ncols=3, frameon=False
    )
    return figure


def _draw(panel: Axes, own: Sequence[Point], place: int, name: str) -> None:
    panel.errorbar(
        [point.layers for point in own],
        [100 * point.mean("accuracy") for point in own],
        yerr=[100 * (point.spread("accuracy") or 0) for point in own],
        color=COLOURS[place % len(COLOURS)],
        marker=MARKERS[place % len(MARKERS)],
        markersize=4,
        capsize=2,
        label=name,
    )


def _name(line: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """What tells a line from the others; all of it where there is one."""
    differs = [len({other[place] for other in lines}) > 1 for place in range(len(line))]
    said = [part for part, tells in zip(line, differs, strict=True) if tells]
    return ", ".join(said or line)


# -------------------------------------------------------------------------------------- Page


def check_report(folder: Path) -> None:
    """Raise UserError where write_report would write over somebody else's files."""
    paths = [folder / name for name in (*figure_files([FIGURE]), PAGE)]
    if taken := [p.name for p in paths if (p.exists() or p.is_symlink()) and not is_ours(p)]:
        raise UserError(
            f"{folder} holds {some(taken)}, which would be written over and which chopjax did not "
            "make; move it away or give another --output"
        )


def write_report(folder: Path, results: Mapping[str, Any], command: str) -> None:
    """accuracy.png, accuracy.svg and report.html. command: how to do the last call again."""
    save(accuracy_figure(results), folder / FIGURE)
    model = results["model"]
    parts = [
        html.paragraph(
            f"{model['name']} has {model['num_layers']} layers and {model['parameters']:,} "
            "parameters. Of what is left of it, every row says how well it tells classes apart: "
            "accuracy and macro-F1 on test examples, in percent, mean ± standard deviation over "
            "seeds. A seed decides which examples are shown, trained on, held out and tested on."
        ),
        html.figure(folder / f"{FIGURE}.svg", "Accuracy against layers kept; bars: ± over seeds."),
        html.heading("Results"),
        html.table(*table(results)),
    ]
    for task, about in results["tasks"].items():
        parts += [html.heading(f"Task {task}"), html.settings(_flat(about["conditions"]))]
    parts += [html.heading("How to do this again"), html.code(command)]
    page = html.page(f"Classification by what is left of {Path(model['name']).name}", parts)
    with new_file(folder / PAGE, overwrite=True) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _flat(conditions: Mapping[str, Any]) -> dict[str, Any]:
    template = conditions["template"]
    words = ", ".join(template["classes"])
    others = {n: value for n, value in conditions.items() if n != "template" and value is not None}
    return {"text": template["text"], "label words": words} | others
