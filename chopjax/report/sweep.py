"""The papers' figures and table from a sweep's rows, as files and as report.html."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from chopjax import __version__
from chopjax.report import costs, html, layers, methods
from chopjax.report.own_files import PAGE, check_files, figure_files, write_report_files
from chopjax.report.plots import save
from chopjax.report.sweep_drafts import DRAFTED, are_drafted, drafts
from chopjax.report.sweep_figures import accuracies, losses, overview, ranking
from chopjax.report.sweep_rows import (
    CHOPPED,
    REPAIRED,
    Cell,
    Row,
    states_of,
    strategies_of,
    summary,
    tasks_of,
    untrained,
)
from chopjax.train.same_run import flat

PARENT = "parent"


FIGURE_NAMES = ("overview", "loss", "ranking", "accuracy", "exact_match", "drafts", "methods")


def check_report(workdir: Path) -> None:
    """Raise UserError where write_report would write over somebody else's files."""
    names = [*figure_files(FIGURE_NAMES), PAGE]
    for folder in workdir.glob("analysis-*"):
        names += [f"{folder.name}/{name}" for name in figure_files(layers.FIGURES)]
    check_files(workdir, names, "points")


def write_report(
    workdir: Path,
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    command: str,
    conventions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Draw and write report.json and report.html; returns what report.json holds.

    conventions: how the points' FLOPs and times were taken.
    """
    report = {
        "chopjax_version": __version__,
        "command": command,
        "settings": dict(settings),
        "figures": figure_files(FIGURE_NAMES),
        "conventions": dict(conventions or {}),
        "num_layers": _parent(rows)["remove"] + _count(_parent(rows)["keep"]),
        "parent": _parent(rows),
        "points": [row for row in rows if row["strategy"] != PARENT],
    }
    figures = {
        "overview": (
            "All strategies together; the band is the standard error of the parent's accuracy.",
            overview(report),
        ),
        "loss": (
            "Held-out loss against layers removed, a panel a strategy; grey: all others.",
            losses(report),
        ),
        "ranking": ("The strategies side by side, lowest loss first.", ranking(report)),
    }
    for kind in tasks_of(report["parent"]):
        caption = f"{kind.capitalize()} against layers removed."
        figures[kind.replace(" ", "_")] = (caption, accuracies(report, kind))
    if are_drafted(report):
        caption = "Each model as a draft for the parent, and the same texts by the parent alone."
        figures["drafts"] = (caption, drafts(report))
    parts = [html.paragraph(_abstract(report))]
    if methods.compared(report):
        drawn = methods.curves(report, in_time=settings["budget"][-1:] in ("h", "m", "s"))
        parts += _methods(report, drawn, workdir)
    else:
        parts += map(html.paragraph, _best(report))
    for name, (_, drawn) in figures.items():
        save(drawn, workdir / name)
    costed = costs.cells(costs.of_sweep(report))
    parts += [
        html.heading("Curves"),
        *(html.figure(workdir / f"{n}.svg", caption) for n, (caption, _) in figures.items()),
        html.heading("Perplexity by strategy"),
        html.table(*table(report, "perplexity", "{:.2f}")),
        html.heading("Loss by strategy, nats per token"),
        html.table(*table(report, "loss", "{:.4f}")),
        html.heading("What each model costs"),
        html.table(costed[0], costed[1:]),
    ]
    named = [(kind, task) for kind, tasks in tasks_of(report["parent"]).items() for task in tasks]
    for kind, task in named:
        value = functools.partial(_accuracy, task)
        parts += [html.heading(f"{task}, {kind}"), html.table(*table(report, value, "{:.3f}"))]
    for name, figure in DRAFTED.items() if are_drafted(report) else ():
        parts += [html.heading(f"As a draft: {name}"), html.table(*table(report, figure, "{:.2f}"))]
    parts += [
        html.heading("Layers kept"),
        html.paragraph("Numbered from 0, both ends of a range included."),
        html.table(*_kept(report), text=True),
    ]
    parts += _analyses(workdir)
    parts += [html.heading("How to do this again"), html.code(command)]
    parts += [html.heading("Settings"), html.settings(flat(settings))]
    title = f"Layers removed from {Path(str(settings['model'])).name}"
    write_report_files(workdir, report, html.page(title, parts))
    return report


def _methods(report: Mapping[str, Any], drawn: Figure, workdir: Path) -> list[str]:
    """The table and the figure of methods side by side."""
    save(drawn, workdir / "methods")
    caption = "Held-out loss on the way, by what it cost; bands: standard deviation over seeds."
    return [
        html.heading("Methods"),
        *map(html.paragraph, methods.sentences(report)),
        html.figure(workdir / "methods.svg", caption),
        html.table(*methods.table(report)),
        *(html.paragraph(f"{name}: {how}.") for name, how in report["conventions"].items()),
    ]


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
    if any(row["healed"] for row in report["points"]) and not methods.compared(report):
        text += (
            f" Healed models were trained on {budget:,} tokens of {settings['text']['train']}, "
            "each with the same settings. ± is the standard deviation over seeds, where there are "
            "several."
        )
    if methods.compared(report):
        each = settings["budget"] or f"{healed['total_steps']:,} steps"
        text += (
            f" Methods of healing had {each} each, on {settings['text']['train']}. ± is the "
            "standard deviation over seeds, where there are several."
        )
    kinds = ", ".join(sorted(set(untrained(report).values())))
    if kinds and any(row["healed"] for row in report["points"]):
        text += f" Weights in {kinds} are not trained."
    if any(row.get("repaired") for row in report["points"]):
        text += (
            f" Repaired models had what was removed folded into what stayed, without training "
            f"({settings['repair']}, ridge {settings['ridge']:g}); some strategies leave no layer "
            "to fold into."
        )
    return text


def _best(report: Mapping[str, Any]) -> list[str]:
    """A sentence for every number of layers removed."""
    cells, total, parent = summary(report, "loss"), report["num_layers"], report["parent"]["loss"]
    kept = {(row["strategy"], row["remove"]): row["keep"] for row in reversed(report["points"])}
    said = []
    for count in sorted({n for by_count in cells.values() for n in by_count}):
        for state in reversed(states_of(report)):
            loss_of = {
                strategy: by_count[count][0]
                for (strategy, each), by_count in cells.items()
                if each == state and count in by_count
            }
            if loss_of:
                best = min(loss_of, key=loss_of.__getitem__)
                shown = "not healed" if state == CHOPPED else state
                said.append(
                    f"With {count} of {total} layers removed, {best} is best {shown}: loss "
                    f"{loss_of[best]:.4f}, {loss_of[best] - parent:+.4f} from the parent's; it "
                    f"keeps layers {kept[best, count]}."
                )
                break
    return said


# ------------------------------------------------------------------------------------ Tables


def _kept(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The layers that stay, for every strategy and number of layers; of several seeds, each."""
    counts = sorted({row["remove"] for row in report["points"]})
    keeps: dict[tuple[str, int], dict[str, None]] = {}
    for row in report["points"]:
        keeps.setdefault((row["strategy"], row["remove"]), {})[row["keep"]] = None
    header = ["strategy", *(f"{n} of {report['num_layers']} removed" for n in counts)]
    return header, [
        [name, *(" or ".join(keeps.get((name, n), {"–": None})) for n in counts)]
        for name in strategies_of(report)
    ]


def table(
    report: Mapping[str, Any], value: str | Callable[[Row], float], number: str
) -> tuple[list[str], list[list[str]]]:
    """Strategies by layers removed, in every state (Just CHOP's table 6, arXiv 2305.14864)."""
    cells = summary(report, value)
    total = report["num_layers"]
    states, bits = states_of(report), untrained(report)
    found = {(state, n) for (_, state), by_count in cells.items() for n in by_count}
    columns = sorted(found, key=lambda column: (states.index(column[0]), column[1]))
    header = ["strategy"] + [
        f"{n} of {total} removed{'' if state == CHOPPED else f', {state}'}" for state, n in columns
    ]
    get = value if callable(value) else lambda row: row[value]
    body = [["parent", *([number.format(get(report["parent"]))] * len(columns))]]
    for name in strategies_of(report):
        line = [name]
        for state, n in columns:
            cell = cells.get((name, state), {}).get(n)
            is_there = n in cells.get((name, CHOPPED), {})
            trained = is_there and state not in (CHOPPED, REPAIRED) and name in bits
            line.append(_text(cell, number) if cell else "not trained" if trained else "–")
        body.append(line)
    return header, body


def _text(cell: Cell, number: str) -> str:
    mean, spread, _ = cell
    return number.format(mean) + ("" if spread is None else " ± " + number.format(spread))


def rich_table(report: Mapping[str, Any]) -> Table:
    """For the terminal: losses, and where methods are compared what they cost."""
    words, title = 1, "held-out loss, nats per token"
    if methods.compared(report):
        words, (header, body) = 3, methods.table(report)
        title = "methods of healing; losses in nats per token"
    else:
        header, body = table(report, "loss", "{:.4f}")
    result = Table(*header, box=None, title=title, title_justify="left")
    for column in result.columns[words:]:
        column.justify = "right"
    for line in body:
        result.add_row(*line)
    return result


def _accuracy(task: str, row: Row) -> float:
    accuracy: float = row["accuracy"][task][0]
    return accuracy


def _parent(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row["strategy"] == PARENT)


def _count(keep: str) -> int:
    low, _, high = keep.partition("-")
    return int(high or low) + 1
