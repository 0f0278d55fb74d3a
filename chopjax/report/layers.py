"""Pictures of an analysis: how similar layers are, how much each matters, what strategies choose.

Every figure takes the object that analysis.json holds. Colours can be told apart by colour-blind
readers and, where it matters, markers or hatches by those who print in grey.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chopjax.chop.importance import MEASURED, Protect, choose_measured
from chopjax.keep import parse_keep
from chopjax.report.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, hide_box, save

LINES = (  # colour, marker
    (BLUE, "o"),
    (ORANGE, "s"),
    (GREEN, "^"),
    (RED, "D"),
    (PURPLE, "v"),
    (SKY, "P"),
    (BLACK, "X"),
)


def save_all(analysis: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw what the analysis has numbers for, as PNG and SVG; the names of the figures."""
    drawn = []
    for name, (needed, draw) in FIGURES.items():
        if needed(analysis):
            save(draw(analysis), folder / name)
            drawn.append(name)
    return drawn


def heat_map(analysis: Mapping[str, Any]) -> Figure:
    """d(ℓ, n) for every block, ℓ* marked for every n (arXiv 2403.17887, figure 4)."""
    L = analysis["num_layers"]
    distance_LL = np.array(analysis["measures"]["distance"], np.float64)
    protect = _protect(analysis)
    size = (max(5.0, 0.22 * L + 3), max(4.0, 0.19 * L + 2.4))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    # Blocks that begin with a protected layer may be far off the scale of all others.
    inner = distance_LL[protect.first :]
    values = inner[np.isfinite(inner)]
    image = axes.imshow(
        distance_LL.T,
        origin="lower",
        extent=(-0.5, L - 0.5, 0.5, L + 0.5),
        aspect="auto",
        cmap="viridis",
        vmin=values.min(),
        vmax=values.max(),
        interpolation="nearest",
    )
    counts = list(range(1, protect.most(L) + 1))
    chosen = [_first_removed(analysis, n, protect) for n in counts]
    free_counts = list(range(1, L))
    free = [_first_removed(analysis, n, Protect(0, 0)) for n in free_counts]
    axes.plot(
        free, free_counts, linestyle="", marker="o", markersize=6, markerfacecolor="none",
        markeredgecolor="white", markeredgewidth=1.2, label="ℓ*, any layer",
    )  # fmt: skip
    axes.plot(
        chosen, counts, linestyle="", marker="o", markersize=4, color=RED,
        label=f"ℓ*, first {protect.first} and last {protect.last} protected",
    )  # fmt: skip
    axes.set_xlabel("first layer of the block, ℓ (from 0)")
    axes.set_ylabel("layers in the block, n")
    bar = figure.colorbar(image, extend="max" if np.nanmax(distance_LL) > values.max() else None)
    bar.set_label("angular distance d(ℓ, n) (half turns)")
    figure.legend(  # beside the map, of which it would hide cells; dark, for the white rings
        loc="outside upper center", ncols=2, fontsize=8,
        facecolor="#444444", labelcolor="white", framealpha=1,
    )  # fmt: skip
    _whole_numbers(axes, L)
    return figure


def _first_removed(analysis: Mapping[str, Any], count: int, protect: Protect) -> int:
    keep = choose_measured("similarity", analysis, count, protect)
    return min(set(range(analysis["num_layers"])) - set(keep))


SCORES: tuple[tuple[str, str], ...] = (
    ("influence", "block influence\n1 - cos(in, out)"),
    ("magnitude", "relative magnitude\n‖out - in‖ / ‖out‖"),
    ("taylor", "Taylor\nΣ|w·∂loss/∂w|"),
    ("one_out_loss", "loss added when left out\n(nats per token)"),
)


def layer_bars(analysis: Mapping[str, Any]) -> Figure:
    """One row of bars a measure, one bar a layer."""
    L, measures, protect = analysis["num_layers"], analysis["measures"], _protect(analysis)
    rows = [(name, label) for name, label in SCORES if name in measures]
    figure = Figure(figsize=(max(5.0, 0.22 * L + 3), 1.7 * len(rows) + 0.4))
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    protected = protect.layers(L)
    for axes, (name, label) in zip(panels, rows, strict=True):
        height_L = np.array(measures[name], np.float64)
        if name == "one_out_loss":
            height_L = height_L - analysis["parent_loss"]
        _bars(axes, height_L, protected)
        axes.set_ylabel(label, fontsize=8)
        axes.grid(axis="y", alpha=0.25)
        hide_box(axes)
    panels[-1].set_xlabel("layer (from 0); grey: protected")
    _whole_numbers(panels[-1], L, vertical=False)
    return figure


def _bars(axes: Axes, height_L: np.ndarray, protected: frozenset[int]) -> None:
    """Bars that leave the scale of the unprotected layers are cut off and bear their number."""
    layers = np.arange(len(height_L))
    inner = np.array([height_L[layer] for layer in layers if layer not in protected])
    top = 1.25 * max(float(np.nanmax(inner)), 0.0) or 1.0
    colours = [GREY if layer in protected else BLUE for layer in layers]
    axes.bar(layers, np.minimum(height_L, top), color=colours, width=0.75)
    low = min(0.0, 1.25 * float(np.nanmin(inner)))
    axes.set_ylim(low, top)
    for layer, height in enumerate(height_L):
        if height > top:
            axes.annotate(
                f"{height:.3g}", (layer, top), xytext=(0, -3), textcoords="offset points",
                ha="center", va="top", fontsize=7, color="white", rotation=90,
            )  # fmt: skip


def choice_losses(analysis: Mapping[str, Any]) -> Figure:
    """Loss against layers removed, before healing: measured strategies and named ones."""
    choices = analysis["choices"]
    groups = {
        "chosen by a measure": [name for name in choices if name in MEASURED],
        "chosen by name": [name for name in choices if name not in MEASURED],
    }
    figure = Figure(figsize=(10, 4.2))
    for axes, (title, names) in zip(
        figure.subplots(1, 2, sharex=True, sharey=True), groups.items(), strict=True
    ):
        for order, (name, (colour, marker)) in enumerate(zip(names, LINES, strict=False)):
            counts = sorted(map(int, choices[name]))
            losses = [choices[name][str(count)]["loss"] for count in counts]
            # Strategies often choose the same layers: what is drawn later is smaller.
            size = 1 - order / (len(names) + 1)
            axes.plot(
                counts, losses, color=colour, marker=marker, label=name,
                markersize=3 + 7 * size, linewidth=0.8 + 2.5 * size,
            )  # fmt: skip
        axes.axhline(analysis["parent_loss"], color=GREY, linestyle="--", label="whole model")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"layers removed of {analysis['num_layers']}")
        axes.grid(alpha=0.25)
        axes.legend(
            frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14)
        )
        hide_box(axes)
    figure.axes[0].set_ylabel("loss on the calibration text,\nnot healed (nats per token)")
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def agreement(analysis: Mapping[str, Any]) -> Figure:
    """Which layers each strategy removes at about a quarter, a half and three quarters, and how
    many of them any two strategies share at a half."""
    L, choices = analysis["num_layers"], analysis["choices"]
    most = _protect(analysis).most(L)
    counts = sorted({min(max(1, round(L * share)), most) for share in (0.25, 0.5, 0.75)})
    names = [name for name in choices if all(str(n) in choices[name] for n in counts)]
    removed = {
        name: [_removed(choices[name][str(n)]["remove"], L) for n in counts] for name in names
    }
    figure = Figure(figsize=(max(9.0, 0.22 * L + 7), 0.33 * len(names) + 1.6))
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    # Strategies need not nest: every count has a strip of its own.
    shades = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.85, len(counts)))
    height = 0.8 / len(counts)
    for row, name in enumerate(names):
        for strip, (gone, shade) in enumerate(zip(removed[name], shades, strict=True)):
            bottom = row - 0.4 + strip * height
            left.bar(sorted(gone), height, bottom=bottom, width=0.9, color=shade)
    handles = [left.bar(0, 0, color=shade) for shade in shades]
    left.legend(
        handles, [f"{n} of {L} removed" for n in counts], fontsize=8, frameon=False,
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(counts), borderaxespad=0.2,
    )  # fmt: skip
    left.set_yticks(range(len(names)), names)
    left.set_xlim(-0.6, L - 0.4)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_xlabel("layer (from 0)")
    _whole_numbers(left, L, vertical=False)
    hide_box(left)
    _overlap(right, names, [removed[name][len(counts) // 2] for name in names])
    right.set_title(f"removed layers in common, of {counts[len(counts) // 2]}", fontsize=9)
    figure.tight_layout()
    return figure


def _overlap(axes: Axes, names: Sequence[str], removed: Sequence[frozenset[int]]) -> None:
    shared = np.array([[len(a & b) for b in removed] for a in removed])
    axes.imshow(shared, cmap="cividis", vmin=0, vmax=shared.max(), aspect="auto")
    for (row, column), value in np.ndenumerate(shared):
        colour = "white" if value < 0.6 * shared.max() else "black"
        axes.text(column, row, str(value), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks([])


def _removed(text: str, num_layers: int) -> frozenset[int]:
    return frozenset(parse_keep(text, num_layers))


def _protect(analysis: Mapping[str, Any]) -> Protect:
    return Protect(**analysis["settings"]["protect"])


def _whole_numbers(axes: Axes, num_layers: int, vertical: bool = True) -> None:
    step = max(1, -(-num_layers // 16))
    axes.set_xticks(range(0, num_layers, step))
    if vertical:
        axes.set_yticks(range(step, num_layers + 1, step))


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda analysis: all(name in analysis["measures"] for name in names)


FIGURES: dict[str, tuple[Callable[[Any], bool], Callable[[Any], Figure]]] = {
    "distance": (_has("distance"), heat_map),
    "layers": (lambda a: any(name in a["measures"] for name, _ in SCORES), layer_bars),
    "choices": (lambda a: "choices" in a, choice_losses),
    "agreement": (lambda a: "choices" in a, agreement),
}
