"""A sweep's models as drafts for their parent (speculative decoding), where that was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from chopjax.report.plots import GREY, hide_box
from chopjax.report.sweep_figures import draw_key, draw_strategies
from chopjax.report.sweep_rows import Row, states_of, strategies_of, summary

ALONE = {"accepted_length": 1.0, "speed_up": 1.0}  # the parent, for which nobody drafts
DRAFTED: dict[str, Callable[[Row], float]] = {
    "accepted length, tokens a round": lambda row: row.get("draft", ALONE)["accepted_length"],
    "speed-up over the parent alone": lambda row: row.get("draft", ALONE)["speed_up"],
}


def are_drafted(report: Mapping[str, Any]) -> bool:
    """Whether it was measured."""
    return all("draft" in row for row in report["points"])


def drafts(report: Mapping[str, Any]) -> Figure:
    """Accepted length and speed-up against the fraction removed, all strategies together. Of
    several states the first is drawn, and the last."""
    total, states = report["num_layers"], states_of(report)
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    panels = figure.subplots(1, len(DRAFTED), squeeze=False)[0]
    for axes, (label, value) in zip(panels, DRAFTED.items(), strict=True):
        cells = summary(report, value)
        for state in dict.fromkeys((states[0], states[-1])):
            draw_strategies(axes, cells, strategies_of(report), state, math.nan, total)
        axes.axhline(1, color=GREY, linestyle="-.", linewidth=1)
        axes.set_xlabel(f"layers removed, of {total}", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        hide_box(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    draw_key(figure, states, ["parent alone"])
    return figure
