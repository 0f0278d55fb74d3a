"""What drafts of one model bring: table and figure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from chopjax.latency.drafts import Drafted
from chopjax.report.layers import LINES
from chopjax.report.plots import GREY, hide_box

# Label → value, both of which are 1 where nobody drafts.
PANELS: dict[str, Callable[[Drafted], float]] = {
    "accepted length\n(tokens a round)": lambda one: one.accepted_length,
    "speed-up\n(tokens/s over plain decoding)": lambda one: one.speed_up,
}


def table(drafted: Mapping[str, Drafted], layers: int) -> Table:
    """layers: of the model."""
    shown = Table(box=None, header_style="bold")
    shown.add_column("draft")
    titles = ("layers removed", "K", "accepted length", "acceptance α", "tokens/s", "plain")
    for title in (*titles, "speed-up"):
        shown.add_column(title, justify="right")
    for name, one in drafted.items():
        shown.add_row(
            name,
            str(layers - one.layers),
            str(one.length or "none"),
            f"{one.accepted_length:.2f}" if one.length else "–",
            "–" if one.acceptance is None else f"{one.acceptance:.3f}",
            f"{one.tokens_per_second:.1f}",
            f"{one.plain:.1f}",
            f"{one.speed_up:.2f}x",
        )
    return shown


def as_json(drafted: Mapping[str, Drafted]) -> list[dict[str, Any]]:
    return [
        {"name": name, **dataclasses.asdict(one), "speed_up": one.speed_up}
        for name, one in drafted.items()
    ]


def figure(drafted: Mapping[str, Drafted], layers: int, title: str) -> Figure:
    """Accepted length and speed-up against layers removed. layers: of the model."""
    drawn = Figure(figsize=(9, 3.9), layout="constrained")
    drawn.suptitle(title, fontsize=10)
    for axes, (label, value) in zip(drawn.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        axes.axhline(1, color=GREY, linestyle="-.", linewidth=1)
        for (name, one), (color, marker) in zip(drafted.items(), itertools.cycle(LINES)):
            place = (layers - one.layers, value(one))
            axes.plot(*place, marker=marker, color=color, linestyle="", label=Path(name).name)
        axes.set_xlabel(f"layers removed, of {layers}")
        axes.set_ylabel(label)
        axes.set_xlim(0, layers)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        hide_box(axes)
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return drawn
