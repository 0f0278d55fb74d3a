"""Figures hold what they are given and come out in both formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report.curves import xs, ys

from chopjax.errors import UserError
from chopjax.latency.measure import PHASES, Timing
from chopjax.models.families import translate
from chopjax.report import latency, layers
from chopjax.report.plots import check_plot, healing_curve, save

CONFIG = translate(
    {
        "model_type": "llama",
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
)[1]


def test_healing_curve_draws_every_series_and_both_lines(tmp_path: Path) -> None:
    train, held_out = [(100.0, 4.0), (200.0, 3.5)], [(200.0, 3.6)]
    figure = healing_curve(train, held_out, parent_loss=3.0, chopped_loss=5.0)
    lines = figure.axes[0].get_lines()
    assert ys(lines[0]) == [4.0, 3.5]
    assert xs(lines[1]) == [200.0]
    assert {ys(line)[0] for line in lines[2:]} == {3.0, 5.0}
    assert "nats" in figure.axes[0].get_ylabel()
    save(figure, tmp_path / "curve")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "curve.svg").read_bytes()


def flat_latency() -> Figure:
    """Of models that are no faster with fewer layers: every part of the panel has a point."""
    timings = {phase: Timing(0.01, 0.009, 0.011, None, 1, 1) for phase in PHASES}
    models = [latency.Measured(str(n), CONFIG.keep([0] * n), timings) for n in (4, 3, 2, 1)]
    return latency.figure(models, "a batch")


def falling_curve(removals: tuple[float, ...] = ()) -> Figure:
    points = [(float(n), 5.0 - n / 100) for n in range(100)]
    return healing_curve(points, points[::10], 4.0, 5.0, removals)


def heat_map() -> Figure:
    """Of few layers: no empty corner is large enough for anything."""
    count = 4
    distance = [[0.1 * (i + j) if i + j < count else None for j in range(count)] for i in range(4)]
    settings = {"protect": {"first": 1, "last": 1}}
    measures = {"distance": distance}
    return layers.heat_map({"num_layers": count, "settings": settings, "measures": measures})


@pytest.mark.parametrize(
    "figure",
    [flat_latency(), falling_curve(), falling_curve((0.0, 50.0)), heat_map()],
    ids=["latency", "healing", "rounds", "distance"],
)
def test_no_legend_lies_over_the_data(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()
    boxes = [legend.get_window_extent() for legend in figure.legends]
    boxes += [
        legend.get_window_extent() for a in figure.axes if (legend := a.get_legend()) is not None
    ]
    assert boxes
    for axes in figure.axes:
        panel = axes.get_window_extent()
        assert not any(panel.overlaps(box) for box in boxes)


@pytest.mark.parametrize(("slope", "intercept"), [(1e-3, 5e-4), (1e-3, -1.8e-3)])
def test_signs_of_the_line_are_written_once(slope: float, intercept: float) -> None:
    models = [
        latency.Measured(
            str(n),
            CONFIG.keep([0] * n),
            {phase: Timing(slope * n + intercept, 0, 1, None, 1, 1) for phase in PHASES},
        )
        for n in (9, 8, 6, 4)
    ]
    sign = "+" if intercept > 0 else "-"
    expected = f"1.000 ms a layer {sign} {np.abs(1e3 * intercept):.3f} ms"
    assert all(expected in said for said in latency.findings(models))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_only_figures_of_ours_are_drawn_over(tmp_path: Path, suffix: str) -> None:
    path = check_plot(f"{tmp_path}/v0.5")
    names = save(Figure(), path)
    assert [name.name for name in names] == ["v0.5.png", "v0.5.svg"]
    assert check_plot(f"{tmp_path}/v0.5.png") == path
    theirs = tmp_path / f"v0.5{suffix}"
    Figure().savefig(theirs)  # by matplotlib, too, and not by chopjax
    with pytest.raises(UserError, match=f"v0.5{suffix} is not a figure that chopjax drew"):
        check_plot(f"{tmp_path}/v0.5")
    theirs.unlink()
    theirs.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_plot(f"{tmp_path}/v0.5")


def test_the_folder_of_a_plot_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        check_plot(f"{tmp_path}/none/plot")
