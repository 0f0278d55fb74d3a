"""Figures. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
SKY, PURPLE = "#56B4E9", "#CC79A7"


def save(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.png and PATH.svg; returns their names."""
    names = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for name in names:
        figure.savefig(name, dpi=160, bbox_inches="tight")
    return names


def healing_curve(
    train: Sequence[tuple[float, float]],
    held_out: Sequence[tuple[float, float]],
    parent_loss: float,
    chopped_loss: float,
    removals: Sequence[float] = (),
) -> Figure:
    """Loss against tokens while healing, with the parent's and the chopped model's as lines.

    train, held_out: (tokens seen, loss in nats a token). The two lines are held-out losses.
    removals: tokens seen when layers went, in healing by rounds.
    """
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.add_subplot()
    if train:
        tokens, losses = zip(*train, strict=True)
        axes.plot(tokens, losses, color=BLUE, alpha=0.35, linewidth=0.8, label="training text")
    if held_out:
        tokens, losses = zip(*held_out, strict=True)
        axes.plot(tokens, losses, color=BLUE, marker="o", markersize=3.5, label="held-out text")
    for number, tokens_seen in enumerate(removals):
        axes.axvline(
            tokens_seen, color=GREY, linestyle=":", linewidth=1,
            label=None if number else "layers removed",
        )  # fmt: skip
    axes.axhline(chopped_loss, color=RED, linestyle="--", label=f"chopped {chopped_loss:.3f}")
    axes.axhline(parent_loss, color=GREEN, linestyle="-.", label=f"parent {parent_loss:.3f}")
    axes.set_xlabel("tokens of continued pretraining")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter(lambda value, _: _tokens(value))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _tokens(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
