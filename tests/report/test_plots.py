"""Figures hold what they are given and come out in both formats."""

from __future__ import annotations

from pathlib import Path

from chopjax.report.plots import healing_curve, save


def test_healing_curve_draws_every_series_and_both_lines(tmp_path: Path) -> None:
    train, held_out = [(100.0, 4.0), (200.0, 3.5)], [(200.0, 3.6)]
    figure = healing_curve(train, held_out, parent_loss=3.0, chopped_loss=5.0)
    lines = figure.axes[0].get_lines()
    assert list(lines[0].get_ydata()) == [4.0, 3.5]
    assert list(lines[1].get_xdata()) == [200.0]
    assert {line.get_ydata()[0] for line in lines[2:]} == {3.0, 5.0}
    assert "nats" in figure.axes[0].get_ylabel()
    save(figure, tmp_path / "curve")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "curve.svg").read_bytes()
