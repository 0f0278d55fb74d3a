"""The papers' figures and table from a sweep's rows, as files and as report.html."""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.table import Table

from chopjax import __version__
from chopjax.chop.importance import MEASURED
from chopjax.report import html, layers
from chopjax.report.plots import GREY, save
from chopjax.train.settings import flat

Row = dict[str, Any]
Cell = tuple[float, float | None, int]  # mean, standard deviation over seeds, number of seeds
PARENT = "parent"


def write_report(
    workdir: Path, settings: Mapping[str, Any], rows: Sequence[Row], command: str
) -> dict[str, Any]:
    """Draw and write report.json and report.html; returns what report.json holds."""
    report = {
        "chopjax_version": __version__,
        "command": command,
        "settings": dict(settings),
        "num_layers": _parent(rows)["remove"] + _count(_parent(rows)["keep"]),
        "parent": _parent(rows),
        "points": [row for row in rows if row["strategy"] != PARENT],
    }
    (workdir / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    figures = {"loss": ("Held-out loss against layers removed.", losses(report))}
    if report["parent"]["accuracy"]:
        figures["accuracy"] = ("Mean accuracy against layers removed.", accuracies(report))
    for name, (_, drawn) in figures.items():
        save(drawn, workdir / name)
    parts = [
        html.paragraph(_abstract(report)),
        html.heading("Curves"),
        *(html.figure(workdir / f"{n}.svg", caption) for n, (caption, _) in figures.items()),
        html.heading("Perplexity by strategy"),
        html.table(*table(report, "perplexity", "{:.2f}")),
        html.heading("Loss by strategy, nats per token"),
        html.table(*table(report, "loss", "{:.4f}")),
    ]
    for task in report["parent"]["accuracy"]:
        value = functools.partial(_accuracy, task)
        parts += [html.heading(f"{task}, accuracy"), html.table(*table(report, value, "{:.3f}"))]
    parts += _analyses(workdir)
    parts += [html.heading("How to do this again"), html.code(command)]
    parts += [html.heading("Settings"), html.settings(flat(settings))]
    title = f"Layers removed from {Path(str(settings['model'])).name}"
    (workdir / "report.html").write_text(html.page(title, parts))
    return report


def _analyses(workdir: Path) -> list[str]:
    """The pictures of the first analysis, if a strategy needed one."""
    path = next(iter(sorted(workdir.glob("analysis-*/analysis.json"))), None)
    if path is None:
        return []
    analysis = json.loads(path.read_text())
    captions = {
        "distance": "Angular distance of every block of layers; ℓ* for each number of layers.",
        "layers": "What each layer does, by every measure taken.",
    }
    drawn = layers.save_all(analysis, path.parent)
    return [html.heading("Measures")] + [
        html.figure(path.parent / f"{name}.svg", captions.get(name, name)) for name in drawn
    ]


def _abstract(report: Mapping[str, Any]) -> str:
    parent, settings = report["parent"], report["settings"]
    healed = settings["heal"]
    budget = (
        healed["total_steps"] * healed["data"]["batch_size"] * healed["data"]["sequence_length"]
    )
    text = (
        f"{settings['model']} has {report['num_layers']} layers and a held-out loss of "
        f"{parent['loss']:.4f} nats per token (perplexity {parent['perplexity']:.2f}) over "
        f"{parent['tokens']:,} tokens of {settings['text']['held_out']}: {parent['convention']}."
    )
    if any(row["healed"] for row in report["points"]):
        text += (
            f" Healed models were trained on {budget:,} tokens of {settings['text']['train']}, "
            "each with the same settings. ± is the standard deviation over seeds, where there are "
            "several."
        )
    return text


# --------------------------------------------------------------------------------- Summaries


def summary(
    report: Mapping[str, Any], value: str | Callable[[Row], float]
) -> dict[tuple[str, bool], dict[int, Cell]]:
    """(strategy, healed) → layers removed → mean and spread over seeds."""
    get = value if callable(value) else lambda row: row[value]

    def group(row: Row) -> tuple[str, bool, int]:
        return row["strategy"], row["healed"], row["remove"]

    found: dict[tuple[str, bool], dict[int, Cell]] = {}
    for (strategy, healed, remove), group_rows in itertools.groupby(
        sorted(report["points"], key=group), group
    ):
        values = [get(row) for row in group_rows]
        spread = statistics.stdev(values) if len(values) > 1 else None
        cell = (statistics.fmean(values), spread, len(values))
        found.setdefault((strategy, healed), {})[remove] = cell
    return found


def table(
    report: Mapping[str, Any], value: str | Callable[[Row], float], number: str
) -> tuple[list[str], list[list[str]]]:
    """Strategies by layers removed, unhealed and healed (Just CHOP's table 6, arXiv 2305.14864)."""
    cells = summary(report, value)
    total = report["num_layers"]
    columns = sorted({(healed, n) for (_, healed), by_count in cells.items() for n in by_count})
    header = ["strategy"] + [
        f"{n} of {total} removed{', healed' if healed else ''}" for healed, n in columns
    ]
    get = value if callable(value) else lambda row: row[value]
    body = [["parent", *([number.format(get(report["parent"]))] * len(columns))]]
    for strategy in dict.fromkeys(row["strategy"] for row in report["points"]):
        line = [strategy]
        for healed, n in columns:
            cell = cells.get((strategy, healed), {}).get(n)
            line.append("–" if cell is None else _text(cell, number))
        body.append(line)
    return header, body


def _text(cell: Cell, number: str) -> str:
    mean, spread, _ = cell
    return number.format(mean) + ("" if spread is None else " ± " + number.format(spread))


def rich_table(report: Mapping[str, Any]) -> Table:
    """For the terminal: losses."""
    header, body = table(report, "loss", "{:.4f}")
    result = Table(*header, box=None, title="held-out loss, nats per token", title_justify="left")
    for column in result.columns[1:]:
        column.justify = "right"
    for line in body:
        result.add_row(*line)
    return result


# ----------------------------------------------------------------------------------- Figures


def losses(report: Mapping[str, Any]) -> Figure:
    """Loss against the fraction removed, the parent's as a line; the scale on the right is the
    loss divided by log V, as Deeper Layers draws it (arXiv 2403.17887, figure 3)."""
    parent = report["parent"]
    log_v = parent["loss"] / parent["loss_over_log_vocabulary"]
    figure = _curves(report, "loss", {"parent": parent["loss"]})
    figure.axes[0].set_ylabel("held-out loss (nats per token)")
    right = figure.axes[-1].secondary_yaxis(
        "right", functions=(lambda x: x / log_v, lambda x: x * log_v)
    )
    right.set_ylabel("loss / log V")
    return figure


def accuracies(report: Mapping[str, Any]) -> Figure:
    """Mean accuracy over the tasks against the fraction removed, with parent and chance."""
    parent = report["parent"]
    levels = [level for level in parent["chance"].values() if level is not None]
    lines = {"parent": mean_accuracy(parent)}
    if levels:
        lines["chance"] = statistics.fmean(levels)
    figure = _curves(report, mean_accuracy, lines)
    tasks = ", ".join(parent["accuracy"])
    named = tasks if len(tasks) < 40 else f"{len(parent['accuracy'])} tasks"
    figure.axes[0].set_ylabel(f"accuracy, mean of {named}")
    return figure


def _accuracy(task: str, row: Row) -> float:
    return row["accuracy"][task][0]


def mean_accuracy(row: Row) -> float:
    return statistics.fmean(value for value, _ in row["accuracy"].values())


def _curves(
    report: Mapping[str, Any],
    value: str | Callable[[Row], float],
    lines: Mapping[str, float],
) -> Figure:
    """One panel for unhealed, one for healed points where there are any, and for each the named
    strategies in full and the measured ones broken."""
    cells = summary(report, value)
    states = sorted({healed for _, healed in cells})
    strategies = list(dict.fromkeys(row["strategy"] for row in report["points"]))
    figure = Figure(figsize=(5.2 * len(states) + 2.2, 4.6))
    panels = figure.subplots(1, len(states), sharex=True, sharey=True, squeeze=False)[0]
    for axes, healed in zip(panels, states, strict=True):
        for strategy in strategies:
            by_count = cells.get((strategy, healed))
            if not by_count:
                continue
            counts = sorted(by_count)
            means = [by_count[n][0] for n in counts]
            spreads = [by_count[n][1] or math.nan for n in counts]
            measured = strategy in MEASURED
            group = [s for s in strategies if (s in MEASURED) == measured]
            colour, marker = layers.LINES[group.index(strategy) % len(layers.LINES)]
            axes.errorbar(
                [n / report["num_layers"] for n in counts], means, yerr=spreads, capsize=2,
                color=colour, marker=marker, markersize=5, linewidth=1.3,
                linestyle="--" if measured else "-",
                markerfacecolor="white" if measured else colour, label=strategy,
            )  # fmt: skip
        for (name, level), style in zip(lines.items(), ("-.", ":"), strict=False):
            axes.axhline(level, color=GREY, linestyle=style, label=name)
        axes.set_title("healed" if healed else "not healed", fontsize=10)
        axes.set_xlabel(f"layers removed, of {report['num_layers']}")
        axes.set_xticks(sorted({n / report["num_layers"] for by in cells.values() for n in by}))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(alpha=0.25)
        axes.spines["top"].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.tight_layout()
    beside = 1 + 0.9 / figure.get_figwidth()  # inches that a second scale may take
    figure.legend(
        handles, labels, loc="center left", bbox_to_anchor=(beside, 0.5), frameon=False, fontsize=9
    )
    return figure


def _parent(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row["strategy"] == PARENT)


def _count(keep: str) -> int:
    low, _, high = keep.partition("-")
    return int(high or low) + 1
