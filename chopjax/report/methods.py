"""Ways of healing side by side: what each cost, and how far it came for that."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chopjax.report.plots import GREY, hide_box
from chopjax.report.sweep_figures import style_of
from chopjax.report.sweep_rows import CHOPPED, Row, method_of, plain_state, state_named

COLUMNS = 3
# Of a row's `healing`, as a table shows it.
COSTS = {"steps": "{:,.0f}", "tokens": "{:,.0f}", "flops": "{:.3g}", "hours": "{:.3g}"}
Case = tuple[str, int]  # strategy, layers removed
By = dict[Case, dict[str, list[Row]]]
Curve = Sequence[Mapping[str, float]]  # tokens, flops, seconds and loss, from the first step on


def compared(report: Mapping[str, Any]) -> bool:
    """Whether the sweep compared methods, with what they cost."""
    return bool(report["settings"].get("methods") or report["settings"].get("budget"))


def by_method(report: Mapping[str, Any]) -> By:
    """Case → method → its rows, a seed each; chopped and no more under "". A measure may choose
    other layers for every seed."""
    cases: By = {}
    for row in report["points"]:
        case = cases.setdefault((row["strategy"], row["remove"]), {})
        case.setdefault(method_of(row), []).append(row)
    return cases


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """And the standard deviation, of several."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _of(rows: Sequence[Row], value: Callable[[Row], float], number: str) -> str:
    level, spread = mean([value(row) for row in rows])
    return number.format(level) + (f" ± {number.format(spread)}" if spread is not None else "")


def _spent(rows: Sequence[Row], name: str) -> float:
    """The mean over seeds of what healing took."""
    costs = [row.get("healing", {}) for row in rows]
    if name == "hours":
        return statistics.fmean(cost.get("seconds", 0) for cost in costs) / 3600
    return statistics.fmean(cost.get(name, 0) for cost in costs)


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A line a method, a block a case."""
    tasks = list(report["parent"]["accuracy"])
    header = ["strategy", "removed", "method", "steps", "tokens", "FLOPs", "hours"]
    header += ["loss", "window loss", *tasks]
    parent = report["parent"]
    body = [_line(["parent", "0", "", *[""] * 4], [parent], tasks)]
    for (strategy, remove), methods in by_method(report).items():
        for name, rows in methods.items():
            cost = [form.format(_spent(rows, name)) for name, form in COSTS.items()]
            shown = name or plain_state(rows[0])
            first = [strategy, str(remove), shown, *(cost if name else [""] * 4)]
            body.append(_line(first, rows, tasks))
    return header, body


def _line(first: list[str], rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    windows = [row for row in rows if "window_loss" in row]
    return [
        *first,
        _of(rows, lambda row: float(row["loss"]), "{:.4f}"),
        _of(windows, lambda row: float(row["window_loss"]), "{:.4f}") if windows else "–",
        *(_of(rows, functools.partial(_accuracy, task), "{:.3f}") for task in tasks),
    ]


def _accuracy(task: str, row: Row) -> float:
    return float(row["accuracy"][task][0])


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Which method came furthest, and what lasts of a repair."""
    said, total, parent = [], report["num_layers"], report["parent"]["loss"]
    for (strategy, remove), methods in by_method(report).items():
        losses = {name: mean([row["loss"] for row in rows])[0] for name, rows in methods.items()}
        best = min(losses, key=losses.__getitem__)
        plain, and_no_more = (CHOPPED, " and no more") if remove else ("not healed", "")
        said.append(
            f"{strategy}, {remove} of {total} layers removed: {best or plain} has the lowest "
            f"loss, {losses[best]:.4f} ({losses[best] - parent:+.4f} from the parent's; "
            f"{plain}{and_no_more} {losses[''] - parent:+.4f})."
        )
        said += [
            f"A repair is worth {before:.4f} nats of window loss before {name}, and "
            f"{_shown(after)} after it."
            for name, before, after in lasting(methods)
        ]
    return said


def _shown(level: tuple[float, float | None]) -> str:
    value, spread = level
    return f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


def lasting(
    methods: Mapping[str, Sequence[Row]],
) -> list[tuple[str, float, tuple[float, float | None]]]:
    """Of every way of training that was done with and without a repair: its name, how much lower
    the window loss is with one before the first step, and after the last, seed by seed."""
    found = []
    for name, rows in methods.items():
        mended = {row["seed"]: row for row in methods.get(f"repair+{name}", ())}
        pairs = [
            (row["healing"]["curve"], mended[row["seed"]]["healing"]["curve"])
            for row in rows
            if name and row["seed"] in mended
        ]
        gains = [
            (plain[0]["loss"] - other[0]["loss"], plain[-1]["loss"] - other[-1]["loss"])
            for plain, other in pairs
            if plain and other
        ]
        if gains:
            before, after = zip(*gains, strict=True)
            found.append((name, statistics.fmean(before), mean(after)))
    return found


# ------------------------------------------------------------------------------------ Figure


def curves(report: Mapping[str, Any], in_time: bool) -> Figure:
    """Window loss against FLOPs, or hours: a curve a method, a panel a case. A band is the standard
    deviation over seeds; a lone marker is what cost no training."""
    cases = by_method(report)
    columns = min(COLUMNS, len(cases))
    rows = math.ceil(len(cases) / columns)
    figure = Figure(figsize=(4.4 * columns + 2.2, 3.2 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    parent, top = report["parent"].get("window_loss"), _top(cases)
    for axes, ((strategy, remove), methods) in zip(panels.flat, cases.items(), strict=False):
        for name, points in methods.items():
            _draw(axes, name, points, in_time, top)
        if parent is not None:
            axes.axhline(parent, color=GREY, linestyle="-.", linewidth=1, label="parent")
        axes.set_title(f"{strategy}, {remove} of {report['num_layers']} removed", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        hide_box(axes)
    panels.flat[0].set_ylim(top=top + 0.1)
    for axes in list(panels.flat)[len(cases) :]:
        axes.remove()
    figure.supxlabel("hours of training" if in_time else "FLOPs", fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel("held-out loss in windows\n(nats per token)", fontsize=9)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=8
    )
    return figure


def _top(cases: By) -> float:
    """The highest loss of what has the parent's weights: random ones would leave no room for the
    rest, as long as they are far above it."""
    losses: list[float] = []
    for methods in cases.values():
        for name, rows in methods.items():
            if name != "scratch":
                losses += [row["window_loss"] for row in rows if "window_loss" in row]
                runs = [row.get("healing", {}).get("curve", []) for row in rows]
                losses += [at["loss"] for run in runs for at in run]
    return max(losses)


def _draw(axes: Axes, name: str, points: Sequence[Row], in_time: bool, top: float) -> None:
    """A method's rows, a seed each. What lies above the top has its last loss in the legend."""
    style = style_of(state_named(name)) | {"markersize": 4, "linewidth": 1.4}
    style["label"] = name or plain_state(points[0])
    runs = [curve for row in points if (curve := row.get("healing", {}).get("curve"))]
    if not runs:
        losses = [row["window_loss"] for row in points if "window_loss" in row]
        if losses:
            spent = statistics.fmean(_cost(row.get("healing", {}), in_time) for row in points)
            axes.plot([spent], [statistics.fmean(losses)], **style | {"linestyle": ""})
        return
    stages = _together(runs)
    xs = [statistics.fmean(_cost(at, in_time) for at in stage) for stage in stages]
    levels = [mean([at["loss"] for at in stage]) for stage in stages]
    ys = [level for level, _ in levels]
    if ys[-1] > top:
        style["label"] += f" (above, ends at {ys[-1]:.2f})"
    axes.plot(xs, ys, **style)
    if len(runs) > 1:
        low = [level - (spread or 0) for level, spread in levels]
        high = [level + (spread or 0) for level, spread in levels]
        axes.fill_between(xs, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _together(runs: Sequence[Curve]) -> list[list[Mapping[str, float]]]:
    """What the seeds' runs measured as far on their way as the run that measured least often.

    They make the same number of steps, or nearly (a repair's time is its own), and a run that was
    stopped may have gone on with other evaluations.
    """

    def share(run: Curve, at: Mapping[str, float]) -> float:
        return at["tokens"] / max(run[-1]["tokens"], 1)

    rarest = min(runs, key=len)
    return [
        [min(run, key=lambda at: abs(share(run, at) - share(rarest, stage))) for run in runs]
        for stage in rarest
    ]


def _cost(at: Mapping[str, float], in_time: bool) -> float:
    return at.get("seconds", 0) / 3600 if in_time else at.get("flops", 0)
