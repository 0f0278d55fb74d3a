"""A table of models by tasks as cells for the terminal, as Markdown, and as a figure."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table as RichTable

from chopjax.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, hide_box
from chopjax.report.task_table import Cell, Row, Table

COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PURPLE)
MARKERS = "osD^vPX*"
CHANCE = "chance"
INTERVALS_UP_TO = 3  # models; a wider table has stars alone


def cells(table: Table) -> list[list[str]]:
    """Header and rows."""
    full = len(table.models) <= INTERVALS_UP_TO
    header = ["task", "metric", table.models[0]]
    for model in table.models[1:]:
        header += [model, "difference", "95 %", "p"] if full else [model, "difference"]
    if any(row.chance is not None for row in table.rows):
        header.append("chance")
    lines = [header]
    for row in table.rows:
        line = [row.task, row.metric, _value(row.cells[0])]
        for cell in row.cells[1:]:
            line += [_value(cell), *_difference(cell, full)]
        if header[-1] == "chance":
            line.append("" if row.chance is None else _number(row.chance))
        lines.append(line)
    return lines


def groups(table: Table) -> list[int]:
    """Which columns after the first belong together: a model's value and its differences."""
    size = 4 if len(table.models) <= INTERVALS_UP_TO else 2
    return [2, *([size] * (len(table.models) - 1))]


def _value(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return _number(cell.value) + ("" if cell.stderr is None else f" ± {_number(cell.stderr)}")


def _difference(cell: Cell | None, full: bool) -> list[str]:
    if cell is None or cell.difference is None:
        return ["", "", ""] if full else [""]
    shown = _signed(cell.difference) + (stars(cell.p) if cell.p is not None else "")
    if not full:
        return [shown]
    if cell.interval is None or cell.p is None:
        return [shown, "", ""]
    low, high = cell.interval
    return [shown, f"{_signed(low)} … {_signed(high)}", _p(cell.p)]


def stars(p: float) -> str:
    return "*" * sum(p < level for level in (0.05, 0.01, 0.001))


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.5g}"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "−") + _number(abs(value))


def legend(table: Table) -> str:
    if not any(cell and cell.p is not None for row in table.rows for cell in row.cells):
        return ""
    return (
        f"Differences from {table.models[0]}; paired bootstrap over documents, 95 % intervals; "
        "* p < 0.05, ** p < 0.01, *** p < 0.001, not corrected for the number of tasks."
    )


def rich_table(table: Table) -> RichTable:
    header, *rows = cells(table)
    shown = RichTable(box=None, header_style="bold")
    for number, title in enumerate(header):
        shown.add_column(title, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


def markdown(table: Table) -> str:
    notes = [text for text in (legend(table), *table.notes) if text]
    lines = markdown_lines(cells(table), 2)
    return "\n".join([*lines, "", *(f"{_escaped([note])[0]}\n" for note in notes)]).rstrip()


def markdown_lines(cells: list[list[str]], words: int) -> list[str]:
    """words: how many of the first columns hold no numbers."""
    header, *rows = cells
    rule = [*["---"] * words, *("---:" for _ in header[words:])]
    return ["| " + " | ".join(_escaped(line)) + " |" for line in (header, rule, *rows)]


def _escaped(line: list[str]) -> list[str]:
    return [cell.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_") for cell in line]


def figure(table: Table) -> Figure:
    """Left the values, right the differences from the first model with 95 % intervals; accuracies
    and the like above, metrics of which less is better below, on an axis of their own."""
    groups = [
        [row for row in table.rows if row.higher_is_better],
        [row for row in table.rows if not row.higher_is_better],
    ]
    groups = [rows for rows in groups if rows]
    heights = [0.5 + 0.16 * len(rows) * max(2, len(table.models)) for rows in groups]
    drawn = Figure(figsize=(9.6, 1.2 + sum(heights) + 0.5 * len(groups)), layout="constrained")
    axes = drawn.subplots(len(groups), 2, squeeze=False, height_ratios=heights)
    for rows, (left, right) in zip(groups, axes, strict=True):
        _draw_values(left, table.models, rows)
        _draw_differences(right, table.models, rows)
    # Chance comes after the models.
    named = dict(zip(*reversed(axes[0][0].get_legend_handles_labels()), strict=True))
    labels = sorted(named, key=lambda label: label == CHANCE)
    handles = [named[label] for label in labels]
    drawn.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return drawn


def _draw_values(axes: Axes, models: list[str], rows: list[Row]) -> None:
    for number, model in enumerate(models):
        points = [
            (cell.value, place + _offset(number, len(models)), cell.stderr or 0.0)
            for place, row in enumerate(rows)
            if (cell := row.cells[number]) is not None
        ]
        if points:
            values, places, errors = zip(*points, strict=True)
            axes.errorbar(values, places, xerr=errors, label=model, **_style(number))
    level = [(row.chance, place) for place, row in enumerate(rows) if row.chance is not None]
    if level:
        chances, places = zip(*level, strict=True)
        axes.scatter(chances, places, marker="|", s=260, color=GREY, label=CHANCE, zorder=1)
    metrics = {row.metric for row in rows}
    names = [row.task if len(metrics) == 1 else f"{row.task} {row.metric}" for row in rows]
    _finish(axes, names, f"{metrics.pop() if len(metrics) == 1 else 'value'} ± standard error")


def _draw_differences(axes: Axes, models: list[str], rows: list[Row]) -> None:
    axes.axvline(0, color=GREY, linewidth=1)
    for number in range(1, len(models)):
        for place, row in enumerate(rows):
            cell = row.cells[number]
            if cell is None or cell.difference is None:
                continue
            reach = None
            if cell.interval is not None:
                low, high = cell.interval
                reach = [[max(0.0, cell.difference - low)], [max(0.0, high - cell.difference)]]
            y = place + _offset(number, len(models))
            axes.errorbar([cell.difference], [y], xerr=reach, **_style(number))
    _finish(axes, [""] * len(rows), f"difference from {models[0]}, 95 %")


def _offset(number: int, count: int) -> float:
    return 0.0 if count == 1 else (number / (count - 1) - 0.5) * 0.5


def _style(number: int) -> dict[str, Any]:
    return {
        "fmt": MARKERS[number % len(MARKERS)],
        "color": COLOURS[number % len(COLOURS)],
        "markersize": 5,
        "elinewidth": 1.2,
        "capsize": 2,
    }


def _finish(axes: Axes, names: list[str], label: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.25)
    hide_box(axes)
