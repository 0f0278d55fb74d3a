"""The papers' curves from a sweep: a panel a strategy, all together, and all side by side."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from chopjax.chop.configurations import STRATEGIES
from chopjax.chop.importance import MEASURED
from chopjax.report.layers import LINES
from chopjax.report.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, hide_box
from chopjax.report.sweep_rows import (
    ACCURACY,
    BOTH,
    CHOPPED,
    HEALED,
    REPAIRED,
    Cells,
    Row,
    mean_accuracy,
    mean_accuracy_error,
    states_of,
    strategies_of,
    summary,
    tasks_of,
)

PALE = "#CCCCCC"
LONG = 20  # characters of a strategy's name, of which a legend has one a line: lists of layers
# Colour, marker, line, and whether the marker is filled, for print in grey. The least first.
STYLES: dict[str, dict[str, Any]] = {
    CHOPPED: {"color": ORANGE, "marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    REPAIRED: {"color": GREEN, "marker": "^", "linestyle": "--", "markerfacecolor": GREEN},
    HEALED: {"color": BLUE, "marker": "s", "linestyle": "-", "markerfacecolor": BLUE},
    BOTH: {"color": PURPLE, "marker": "D", "linestyle": "-", "markerfacecolor": "white"},
}
# Of the other methods, by the way of training; a repair before it makes the marker hollow
# and the line dashed.
OTHERS = {
    "full": (BLUE, "s"),
    "lora": (RED, "v"),
    "qlora": (SKY, ">"),
    "qlora-int8": (BLACK, "<"),
    "distill": (GREEN, "P"),
    "scratch": (GREY, "X"),
}
COLUMNS = 5
MOST_PANELS = 4  # numbers of layers that `ranking` shows


def name_of(state: str) -> str:
    return "not healed" if state == CHOPPED else state


def style_of(state: str) -> dict[str, Any]:
    """How a curve is drawn."""
    if state in STYLES:
        return STYLES[state]
    repaired, _, trained = state.rpartition("+")
    color, marker = OTHERS[trained]
    face, line = ("white", "--") if repaired else (color, "-")
    return {"color": color, "marker": marker, "linestyle": line, "markerfacecolor": face}


def losses(report: Mapping[str, Any]) -> Figure:
    """Loss against the fraction removed; the scale on the right is the loss divided by log V, as
    Deeper Layers draws it (arXiv 2403.17887, figure 3)."""
    parent = report["parent"]
    log_v = parent["loss"] / parent["loss_over_log_vocabulary"]
    figure = _panels(report, "loss", {"parent": parent["loss"]}, "held-out loss\n(nats per token)")
    for axes in _right_hand(figure):
        right = axes.secondary_yaxis("right", functions=(lambda x: x / log_v, lambda x: x * log_v))
        right.set_ylabel("loss / log V", fontsize=9)
        right.tick_params(labelsize=8)
    return figure


def accuracies(report: Mapping[str, Any], kind: str = ACCURACY) -> Figure:
    """The mean over the tasks of a kind against the fraction removed, with parent and chance."""
    value = functools.partial(mean_accuracy, kind=kind)
    return _panels(report, value, _levels(report, kind), _label(report, kind))


def overview(report: Mapping[str, Any]) -> Figure:
    """All strategies together: mean accuracy, exact matches, and loss over log V, against the
    fraction removed (Deeper Layers, arXiv 2403.17887, figures 2 and 3). Of several states the first
    is drawn, and the last; the band around the parent's accuracy is its standard error."""
    parent, total, states = report["parent"], report["num_layers"], states_of(report)
    rows: list[tuple[str, str | Callable[[Row], float], dict[str, float], float | None]] = [
        (
            _label(report, kind),
            functools.partial(mean_accuracy, kind=kind),
            _levels(report, kind),
            mean_accuracy_error(parent, kind),
        )
        for kind in tasks_of(parent)
    ]
    over_log_v = "loss_over_log_vocabulary"
    rows.append(("held-out loss / log V", over_log_v, {"parent": parent[over_log_v]}, None))
    names, chops = strategies_of(report), (*STRATEGIES, *MEASURED)
    lists = [name for name in names if name.startswith("keep:") and "+" not in name]
    groups = {
        "chosen by name": [n for n in names if n in STRATEGIES],
        "chosen by a measure": [n for n in names if n in MEASURED],
        "chosen by a list": [n for n in names if n in lists],
        "other than a chop, or more": [n for n in names if n not in (*chops, *lists)],
    }
    groups = {title: names for title, names in groups.items() if names}
    size = (4.3 * len(groups) + 0.6, 2.7 * len(rows) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(
        len(rows), len(groups), sharex=True, sharey="row", squeeze=False
    )  # fmt: skip
    for line, (label, value, levels, error) in zip(panels, rows, strict=True):
        cells = summary(report, value)
        line[0].set_ylabel(label, fontsize=9)
        for axes, names in zip(line, groups.values(), strict=True):
            for state in dict.fromkeys((states[0], states[-1])):
                draw_strategies(axes, cells, names, state, levels["parent"], total)
            for level, dash in zip(levels.values(), ("-.", ":"), strict=False):
                axes.axhline(level, color=GREY, linestyle=dash, linewidth=1)
            if error:
                band = (levels["parent"] - error, levels["parent"] + error)
                axes.axhspan(*band, color=GREY, alpha=0.12, linewidth=0)
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.25)
            hide_box(axes)
    for axes, title in zip(panels[0], groups, strict=True):
        axes.set_title(title, fontsize=9)
    for axes, names in zip(panels[-1], groups.values(), strict=True):
        axes.set_xlabel(f"layers removed, of {total}", fontsize=9)
        columns = 1 if any(len(name) > LONG for name in names) else 3
        axes.legend(
            frameon=False, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.2)
        )
    draw_key(figure, states, list(rows[0][2]))
    return figure


def draw_strategies(
    axes: Axes, cells: Cells, names: list[str], state: str, start: float, total: int
) -> None:
    """A curve a strategy, from `start` on where nothing is removed (NaN: from its first point on).
    Some choose the same layers: what is drawn later is smaller."""
    for order, (name, (color, marker)) in enumerate(zip(names, itertools.cycle(LINES))):
        size = 1 - order / (len(names) + 1)
        named = (name, state) in cells and name not in axes.get_legend_handles_labels()[1]
        _curve(
            axes, cells, (name, state), start, total, label=name if named else None, color=color,
            marker=marker, markersize=3 + 4 * size, linewidth=0.8 + 1.2 * size, capsize=2,
            linestyle=style_of(state)["linestyle"],
            markerfacecolor="white" if state == CHOPPED else color,
        )  # fmt: skip


def draw_key(figure: Figure, states: list[str], levels: list[str]) -> None:
    """What dashes and lines mean, whatever the strategy's colour."""
    dashes: tuple[dict[str, Any], ...] = ({"linestyle": "-."}, {"linestyle": ":"})
    lines = [
        Line2D([], [], color=GREY, linewidth=1, label=level, **dash)
        for level, dash in zip(levels, dashes, strict=False)
    ]
    for state in dict.fromkeys((states[0], states[-1])):
        style = style_of(state) | {"color": BLACK, "marker": "o"}
        style["markerfacecolor"] = "white" if state == CHOPPED else BLACK
        lines.append(Line2D([], [], markersize=5, label=name_of(state), **style))
    figure.legend(
        handles=lines, loc="outside upper center", ncols=len(lines), frameon=False, fontsize=9
    )


def ranking(report: Mapping[str, Any]) -> Figure:
    """Every strategy's loss, lowest first, a panel for each number of layers removed."""
    cells, parent = summary(report, "loss"), report["parent"]["loss"]
    states = states_of(report)
    counts = _some({n for by_count in cells.values() for n in by_count}, report["num_layers"])
    strategies = strategies_of(report)
    height = 0.24 * len(strategies) + 1.3
    figure = Figure(figsize=(2.9 * len(counts) + 0.4, height), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True):
        names = _by_loss(cells, states, strategies, count)
        for state in states:
            style = style_of(state)
            values = [cells.get((name, state), {}).get(count) for name in names]
            rows = [row for row, cell in enumerate(values) if cell]
            if rows:
                axes.errorbar(
                    [cell[0] for cell in values if cell], rows,
                    xerr=[cell[1] or 0 for cell in values if cell],
                    **style | {"linestyle": ""}, markersize=5, capsize=2, elinewidth=1,
                    label=name_of(state),
                )  # fmt: skip
        axes.axvline(parent, color=GREY, linestyle="-.", linewidth=1, label="parent")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        share = count / report["num_layers"]
        axes.set_title(f"{count} of {report['num_layers']} removed ({share:.0%})", fontsize=9)
        axes.set_xlabel("held-out loss (nats per token)", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.25)
        hide_box(axes)
    _legend(figure)
    return figure


def _by_loss(cells: Cells, states: list[str], strategies: list[str], count: int) -> list[str]:
    """Those that were scored, by the best that was made of them, lowest first."""
    ranks = {}
    for name in strategies:
        for rank, state in enumerate(reversed(states)):
            cell = cells.get((name, state), {}).get(count)
            if cell and name not in ranks:
                ranks[name] = (rank, cell[0])
    return sorted(ranks, key=lambda name: ranks[name])


def _some(counts: set[int], num_layers: int) -> list[int]:
    """All, or where there are too many those next to a quarter, a half and three quarters."""
    if len(counts) <= MOST_PANELS:
        return sorted(counts)
    wanted = (num_layers * share for share in (0.25, 0.5, 0.75))
    return sorted({min(counts, key=lambda n: abs(n - want)) for want in wanted})


def _panels(
    report: Mapping[str, Any],
    value: str | Callable[[Row], float],
    lines: Mapping[str, float],
    label: str,
) -> Figure:
    """A panel a strategy, all on one scale, with the others' curves of the better state in grey."""
    cells = summary(report, value)
    strategies, total = strategies_of(report), report["num_layers"]
    columns = min(COLUMNS, len(strategies))
    rows = math.ceil(len(strategies) / columns)
    figure = Figure(figsize=(2.1 * columns + 1.2, 1.9 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    start = lines["parent"]
    ticks = sorted({0.0} | {n / total for by_count in cells.values() for n in by_count})
    states = states_of(report)
    for index, axes in enumerate(panels.flat):
        if index >= len(strategies):
            axes.remove()
            continue
        name = strategies[index]
        for other in strategies:
            if other != name:
                _curve(axes, cells, (other, states[-1]), start, total, color=PALE, linewidth=0.7)
        for state in states:
            _curve(
                axes, cells, (name, state), start, total, label=name_of(state), markersize=4,
                linewidth=1.4, capsize=2, zorder=3, **style_of(state),
            )  # fmt: skip
        for (line, level), dash in zip(lines.items(), ("-.", ":"), strict=False):
            axes.axhline(level, color=GREY, linestyle=dash, linewidth=1, label=line)
        axes.set_title(name, fontsize=9)
        if len(ticks) <= 6:
            axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.tick_params(labelsize=8, labelbottom=index + columns >= len(strategies))
        axes.grid(alpha=0.25)
        hide_box(axes)
    figure.supxlabel(f"layers removed, of {total}", fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel(label, fontsize=9)
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """One for all panels, not all of which have every curve."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=len(handles),
        frameon=False, fontsize=9,
    )  # fmt: skip


def _curve(
    axes: Axes, cells: Cells, which: tuple[str, str], start: float, total: int, **style: Any
) -> None:
    """One strategy from the parent on, with error bars where there are several seeds."""
    by_count = cells.get(which)
    if not by_count:
        return
    counts = sorted(by_count)
    spreads = [math.nan] + [by_count[n][1] or math.nan for n in counts]
    axes.errorbar(
        [0.0] + [n / total for n in counts],
        [start] + [by_count[n][0] for n in counts],
        yerr=spreads if "capsize" in style else None,
        markevery=slice(1, None),
        **style,
    )


def _right_hand(figure: Figure) -> list[Axes]:
    """The panels of the last column."""
    specs = [(axes, axes.get_subplotspec()) for axes in figure.axes]
    return [axes for axes, spec in specs if spec is not None and spec.is_last_col()]


def _levels(report: Mapping[str, Any], kind: str) -> dict[str, float]:
    parent = report["parent"]
    guessed = [parent["chance"].get(task) for task in tasks_of(parent)[kind]]
    chance = [level for level in guessed if level]  # neither unknown nor none
    lines = {"parent": mean_accuracy(parent, kind)}
    return lines | ({"chance": statistics.fmean(chance)} if chance else {})


def _label(report: Mapping[str, Any], kind: str) -> str:
    tasks = tasks_of(report["parent"])[kind]
    return f"{kind}\n({', '.join(tasks) if len(tasks) < 3 else f'mean of {len(tasks)} tasks'})"
