"""Figures. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chopjax.disk.atomic import new_file
from chopjax.disk.files import expanded
from chopjax.errors import UserError
from chopjax.report.own_files import FIGURE_METADATA, FIGURES, is_ours

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
SKY, PURPLE, BLACK = "#56B4E9", "#CC79A7", "#000000"


def save(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.png and PATH.svg over what stands there; returns their names."""
    names = _names(path)
    for name, suffix in zip(names, FIGURES, strict=True):
        with new_file(name, overwrite=True) as temporary:
            figure.savefig(
                temporary,
                format=suffix.removeprefix("."),
                dpi=160,
                bbox_inches="tight",
                metadata=FIGURE_METADATA[suffix],
            )
    return names


def check_plot(path: str) -> Path:
    """--plot PATH, without .png or .svg. Raises UserError where a file there is not a figure that
    chopjax drew, or the folder is missing."""
    place = expanded(path)
    if not place.parent.is_dir():
        raise UserError(f"--plot {path}: no folder {place.parent}")
    place = place.with_suffix("") if place.suffix in FIGURES else place
    for name in _names(place):
        if name.is_dir():
            raise UserError(f"--plot {path}: {name} is a folder")
        if os.path.lexists(name) and not is_ours(name):
            raise UserError(
                f"--plot {path}: {name} is not a figure that chopjax drew; give another name or "
                "move it away"
            )
    return place


def _names(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in FIGURES]


def hide_box(axes: Axes) -> None:
    """The two axes are lines enough around a panel."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def healing_curve(
    train: Sequence[tuple[float, float]],
    held_out: Sequence[tuple[float, float]],
    parent_loss: float,
    chopped_loss: float,
    removals: Sequence[float] = (),
) -> Figure:
    """Loss against tokens while healing, with the parent's and the chopped model's as lines.

    train, held_out: (tokens seen, loss in nats a token). The held-out losses and the two
    lines are window losses: in windows of the training length.
    removals: tokens seen when layers went, in healing by rounds.
    """
    figure = Figure(figsize=(6.4, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if train:
        tokens, losses = zip(*train, strict=True)
        axes.plot(tokens, losses, color=BLUE, alpha=0.35, linewidth=0.8, label="training text")
    if held_out:
        tokens, losses = zip(*held_out, strict=True)
        axes.plot(
            tokens,
            losses,
            color=BLUE,
            marker="o",
            markersize=3.5,
            label="held-out text, window loss",
        )
    for number, tokens_seen in enumerate(removals):
        axes.axvline(
            tokens_seen, color=GREY, linestyle=":", linewidth=1,
            label=None if number else "layers removed",
        )  # fmt: skip
    axes.axhline(
        chopped_loss, color=RED, linestyle="--", label=f"chopped, window loss {chopped_loss:.3f}"
    )
    axes.axhline(
        parent_loss, color=GREEN, linestyle="-.", label=f"parent, window loss {parent_loss:.3f}"
    )
    axes.set_xlabel("tokens of continued pretraining")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter(lambda value, _: _tokens(value))
    axes.grid(alpha=0.25)
    # Above the curve: in the panel it would lie over one of the lines.
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    hide_box(axes)
    return figure


def _tokens(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
