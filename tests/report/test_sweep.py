"""Tables and curves of a sweep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from report.rows import SETTINGS, row

from chopjax import __version__
from chopjax.report import sweep, sweep_figures
from chopjax.report.sweep_drafts import DRAFTED, drafts

ROWS = [
    row("parent", 0, 2.0),
    row("input", 2, 3.0),
    row("input", 4, 4.0),
    row("sleb", 4, 3.5),
    row("sleb", 4, 3.7, seed=1),
    row("sleb", 4, 2.5, healed=True),
]


def test_repaired_points_have_columns_and_curves_of_their_own(tmp_path: Path) -> None:
    more = [
        row("sleb", 4, 3.2) | {"repaired": True},
        row("sleb", 4, 2.4, healed=True) | {"repaired": True},
    ]
    settings = SETTINGS | {"repair": "linear", "ridge": 0.1}
    report = sweep.write_report(tmp_path, settings, ROWS + more, "")
    header, body = sweep.table(report, "loss", "{:.2f}")
    assert header[2:] == [
        "4 of 8 removed",
        "4 of 8 removed, repaired",
        "4 of 8 removed, healed",
        "4 of 8 removed, repaired and healed",
    ]
    assert body[-1][2:] == ["3.60 ± 0.14", "3.20", "2.50", "2.40"]
    figure = sweep_figures.losses(report)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"not healed", "repaired", "healed", "repaired and healed"} <= set(labels)
    assert "best repaired and healed: loss 2.4000" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    """What is read by many tests and changed by none: drawing takes a second."""
    return sweep.write_report(folder, SETTINGS, ROWS, "chopjax sweep --config <x>")


def test_table_has_means_and_spreads_over_seeds(report: dict[str, Any]) -> None:
    header, body = sweep.table(report, "loss", "{:.2f}")
    assert header == ["strategy", "2 of 8 removed", "4 of 8 removed", "4 of 8 removed, healed"]
    assert body == [
        ["parent", "2.00", "2.00", "2.00"],
        ["input", "3.00", "4.00", "–"],
        ["sleb", "–", "3.60 ± 0.14", "2.50"],
    ]


def test_table_says_what_is_not_trained(report: dict[str, Any]) -> None:
    points = [row("input+int8", n, 3.0 + n) | {"weights": "int8"} for n in (2, 4)]
    other = report | {"points": [*report["points"], *points]}
    _, body = sweep.table(other, "loss", "{:.1f}")
    assert body[-1] == ["input+int8", "5.0", "7.0", "not trained"]


def curves(axes: Any) -> dict[str, Any]:
    """Label → line, of those that the legend names."""
    handles, labels = axes.get_legend_handles_labels()
    lines = (getattr(handle, "lines", [handle])[0] for handle in handles)
    return dict(zip(labels, lines, strict=True))


def test_a_panel_has_its_strategys_curves_from_the_parent_on(report: dict[str, Any]) -> None:
    loss = sweep_figures.losses(report)
    panels = {axes.get_title(): axes for axes in loss.axes}
    assert list(panels) == ["input", "sleb"]
    sleb = curves(panels["sleb"])
    assert list(sleb["not healed"].get_xdata()) == [0, 0.5]
    assert list(sleb["not healed"].get_ydata()) == pytest.approx([2.0, 3.6])
    assert list(sleb["healed"].get_ydata()) == [2.0, 2.5]
    assert "healed" not in curves(panels["input"])
    assert sleb["parent"].get_ydata()[0] == 2.0
    named = [text.get_text() for text in loss.legends[0].get_texts()]
    assert named == ["parent", "not healed", "healed"], "though the first panel has no healed curve"


def test_accuracy_has_the_levels_of_parent_and_chance(report: dict[str, Any]) -> None:
    lines = curves(sweep_figures.accuracies(report).axes[0])
    assert lines["chance"].get_ydata()[0] == 0.5
    assert lines["parent"].get_ydata()[0] == pytest.approx((0.52 + 0.6) / 2)


def test_the_overview_has_strategies_by_kind_healed_and_not(report: dict[str, Any]) -> None:
    figure: Any = sweep_figures.overview(report)
    accuracy, other, loss, measured = figure.axes
    assert [axes.get_title() for axes in figure.axes[:2]] == [
        "chosen by name",
        "chosen by a measure",
    ]
    assert list(curves(loss)) == ["input"]
    assert list(curves(measured)) == ["sleb"]
    lines = [(*line.get_xdata(), *line.get_ydata()) for line in measured.lines]
    from_the_parent = [line for line in lines if line[:3] == (0, 0.5, 0.5)]  # no error bars' caps
    assert [line[-1] for line in from_the_parent] == pytest.approx([3.6 / 4, 2.5 / 4])
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["parent", "chance", "not healed", "healed"]
    levels = [line.get_ydata()[0] for line in accuracy.lines[-2:]]
    assert levels == pytest.approx([(0.52 + 0.6) / 2, 0.5])
    assert not accuracy.patches, "a task without a standard error: no band"
    assert not other.patches


def test_lists_of_layers_have_a_panel_and_a_line_each_in_its_legend(report: dict[str, Any]) -> None:
    lists = ("keep:0-1:6-7", "keep:0:2:4:6-7", "keep:0-2:4-6:7")
    points = [row(name, 4, 3.0) for name in (*lists, "keep:0-1:6-7+int8")]
    figure: Any = sweep_figures.overview(report | {"points": [*report["points"], *points]})
    titles = {axes.get_title(): axes for axes in figure.axes[:4]}
    assert [*titles][2:] == ["chosen by a list", "other than a chop, or more"]
    legends = [axes.get_legend() for axes in figure.axes[4:]]
    assert [text.get_text() for text in legends[2].get_texts()] == list(lists)


def test_the_band_is_the_standard_error_of_the_mean_accuracy(tmp_path: Path) -> None:
    rows = [each | {"accuracy": {"a": [0.6, 0.03], "b": [0.4, 0.04]}} for each in ROWS]
    figure: Any = sweep_figures.overview(sweep.write_report(tmp_path, SETTINGS, rows, ""))
    (band,) = figure.axes[0].patches
    assert (band.get_y(), band.get_height()) == pytest.approx((0.5 - 0.025, 0.05))


def test_written_answers_have_panels_and_figures_of_their_own(tmp_path: Path) -> None:
    """Beside chosen ones, in whose mean they would not be seen."""
    accuracy = {"gsm8k": [0.5, 0.02], "piqa": [0.75, 0.01]}
    known = {"accuracy": accuracy, "chance": {"gsm8k": 0.0, "piqa": 0.5}}
    rows = [each | known for each in ROWS]
    report = sweep.write_report(tmp_path, SETTINGS, rows, "")
    labels = [axes.get_ylabel() for axes in sweep_figures.overview(report).axes[::2]]
    assert labels == ["accuracy\n(piqa)", "exact match\n(gsm8k)", "held-out loss / log V"]
    lines = curves(sweep_figures.accuracies(report, "exact match").axes[0])
    assert lines["parent"].get_ydata()[0] == 0.5
    assert "chance" not in lines
    assert (tmp_path / "exact_match.svg").exists()
    assert "gsm8k, exact match" in (tmp_path / "report.html").read_text()


def test_drafts_have_curves_that_do_not_begin_at_the_parent(tmp_path: Path) -> None:
    """At no layers removed nobody drafts; the line at 1 is that."""
    rows = [
        each | {"draft": {"accepted_length": each["loss"], "speed_up": each["loss"] / 2}}
        for each in ROWS[1:]
    ]
    report = sweep.write_report(tmp_path, SETTINGS, [ROWS[0], *rows], "")
    figure: Any = drafts(report)
    for axes, scale in zip(figure.axes, (1, 2), strict=True):
        drawn = curves(axes)
        assert list(drawn["input"].get_ydata())[1:] == pytest.approx([3.0 / scale, 4.0 / scale])
        assert math.isnan(drawn["input"].get_ydata()[0])
    named = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert named == {"input", "sleb", "parent alone", "not healed", "healed"}
    _, body = sweep.table(report, DRAFTED["speed-up over the parent alone"], "{:.2f}")
    assert body[0] == ["parent", "1.00", "1.00", "1.00"]
    assert body[2] == ["sleb", "–", "1.80 ± 0.07", "1.25"]
    assert (tmp_path / "drafts.svg").exists()
    assert "As a draft: accepted length" in (tmp_path / "report.html").read_text()


def test_ranking_has_the_lowest_loss_on_top(report: dict[str, Any]) -> None:
    two, four = sweep_figures.ranking(report).axes
    assert [label.get_text() for label in two.get_yticklabels()] == ["input"]
    assert [label.get_text() for label in four.get_yticklabels()] == ["sleb", "input"]


def test_everything_is_in_one_file(report: dict[str, Any], folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert text.count("data:image/svg+xml") == 4
    assert "chopjax sweep --config &lt;x&gt;" in text
    assert "60 tokens of t.jsonl" in text
    assert (folder / "loss.png").exists()
    assert f"chopjax {__version__}" in text
    assert "With 2 of 8 layers removed, input is best not healed: loss 3.0000, +1.0000" in text
    assert "With 4 of 8 layers removed, sleb is best healed: loss 2.5000, +0.5000" in text
    assert report["num_layers"] == 8


def test_every_point_says_which_layers_it_keeps(report: dict[str, Any]) -> None:
    header, body = sweep._kept(report | {"points": [*report["points"], row("x", 2, 1.0, seed=3)]})
    assert header == ["strategy", "2 of 8 removed", "4 of 8 removed"]
    assert body == [["input", "0", "0"], ["sleb", "–", "0"], ["x", "0", "–"]]
    two = [row("x", 2, 1.0), row("x", 2, 1.0, seed=1) | {"keep": "1-3"}]
    assert sweep._kept(report | {"points": two})[1] == [["x", "0 or 1-3"]]
