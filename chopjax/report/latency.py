"""Latency against layers kept: table, what the line through it says, and a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from chopjax.latency.measure import PHASES, Line, Timing, fit
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.report.plots import BLUE, GREY, ORANGE, hide_box

BARE = "no layers"  # the model that has embedding, final norm and head alone


@dataclasses.dataclass(frozen=True)
class Measured:
    """A model in the table. The first is the parent."""

    name: str
    config: ModelConfig
    timings: Mapping[str, Timing]  # by phase

    @property
    def layers(self) -> int:
        return self.config.num_layers


def line(models: Sequence[Measured], phase: str) -> Line | None:
    """Through the models with layers; None where they differ in more than their number."""
    layered = [model for model in models if model.layers]
    if len({model.config.keep(()) for model in layered}) > 1:
        return None
    seconds = [model.timings[phase].seconds for model in layered]
    return fit([model.layers for model in layered], seconds)


def table(models: Sequence[Measured]) -> Table:
    shown = Table(box=None, header_style="bold")
    shown.add_column("")
    for title in ("layers", "parameters"):
        shown.add_column(title, justify="right")
    for phase in PHASES:
        shown.add_column(f"{phase}, ms", justify="right")
        shown.add_column("speed-up", justify="right")
    shown.add_column("memory, MB", justify="right")
    parent = models[0]
    for model in models:
        row = [model.name, str(model.layers), f"{parameters.count(model.config) / 1e6:,.2f} M"]
        for phase in PHASES:
            seconds = model.timings[phase].seconds
            gain = parent.timings[phase].seconds / seconds
            row += [_milliseconds(seconds), f"{gain:.2f}x" if model.layers else ""]
        known = [timing.memory for timing in model.timings.values() if timing.memory is not None]
        row.append(f"{max(known) / 1e6:,.1f}" if known else "–")
        shown.add_row(*row)
    return shown


def findings(models: Sequence[Measured]) -> list[str]:
    """A sentence a phase: the line, what is left without layers, and the share of the ideal."""
    parent = models[0]
    bare = next((model for model in models if not model.layers), None)
    said = []
    for phase in PHASES:
        through = line(models, phase)
        whole = parent.timings[phase].seconds
        parts = []
        if through is not None:
            parts.append(
                f"{_milliseconds(through.slope)} ms a layer "
                f"{'-' if through.intercept < 0 else '+'} "
                f"{_milliseconds(abs(through.intercept))} ms (R² {through.r_squared:.4f})"
            )
        if bare is not None:
            left = bare.timings[phase].seconds
            parts.append(
                f"embedding and head alone {_milliseconds(left)} ms, "
                f"{100 * left / whole:.1f} % of the parent"
            )
        for model in models:
            if 0 < model.layers < parent.layers and 2 * model.layers <= parent.layers:
                gain, ideal = whole / model.timings[phase].seconds, parent.layers / model.layers
                parts.append(
                    f"{model.layers} of {parent.layers} layers {gain:.2f}x of {ideal:.2f}x "
                    f"({100 * gain / ideal:.0f} %)"
                )
                break
        if parts:
            said.append(f"{phase}: {'; '.join(parts)}")
    return said


def as_json(models: Sequence[Measured], about: Mapping[str, Any]) -> dict[str, Any]:
    lines = {phase: line(models, phase) for phase in PHASES}
    return {
        **about,
        "phases": PHASES,
        "models": [
            {
                "name": model.name,
                "layers": model.layers,
                "parameters": parameters.count(model.config),
                **{phase: dataclasses.asdict(timing) for phase, timing in model.timings.items()},
            }
            for model in models
        ],
        "lines": {
            phase: None if through is None else dataclasses.asdict(through)
            for phase, through in lines.items()
        },
    }


def figure(models: Sequence[Measured], title: str) -> Figure:
    """A panel a phase: medians with quartiles, the line through them, and what time in proportion
    to the layers would be."""
    drawn = Figure(figsize=(10.5, 3.9), layout="constrained")
    drawn.suptitle(title, fontsize=10)
    parent = models[0]
    for axes, phase in zip(drawn.subplots(1, len(PHASES)), PHASES, strict=True):
        layered = [model for model in models if model.layers]
        ideal = 1e3 * parent.timings[phase].seconds
        axes.plot([0, parent.layers], [0, ideal], color=GREY, linestyle=":", label="proportional")
        through = line(models, phase)
        if through is not None:
            ends = [0, max(model.layers for model in layered)]
            fitted = [1e3 * (through.intercept + through.slope * x) for x in ends]
            axes.plot(ends, fitted, color=BLUE, linewidth=1, label="linear fit")
        for models_drawn, marker, colour, label in (
            (layered, "o", BLUE, "measured"),
            ([model for model in models if not model.layers], "s", ORANGE, "embedding and head"),
        ):
            if models_drawn:
                timings = [model.timings[phase] for model in models_drawn]
                middle = [1e3 * timing.seconds for timing in timings]
                reach = [
                    [1e3 * max(0.0, timing.seconds - timing.low) for timing in timings],
                    [1e3 * max(0.0, timing.high - timing.seconds) for timing in timings],
                ]
                x = [model.layers for model in models_drawn]
                axes.errorbar(
                    x, middle, reach, fmt=marker, color=colour, capsize=2, markersize=5, label=label
                )
        axes.set_title("decode, a token" if phase == "decode" else phase, fontsize=10)
        axes.set_xlabel("layers kept")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        hide_box(axes)
    drawn.axes[0].set_ylabel("milliseconds")
    # One for all panels, below them: in a panel it would lie over times that hardly fall.
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8
    )
    return drawn


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
