"""Figures hold what they are given and come out in both formats."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from chopjax.errors import UserError
from chopjax.report.plots import check_plot, healing_curve, save


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
