"""Methods of healing side by side: table, sentences, figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report.rows import SETTINGS
from report.rows import row as bare

from chopjax.report import methods, sweep


def row(method: str, seed: int, *losses: float, flops: float = 0.0) -> Any:
    """losses: the curve's, at as many equal steps."""
    trained = method not in ("", "repair")
    made = bare("input", 4, losses[-1], trained, seed) | {"method": method}
    made |= {"repaired": method.startswith("repair"), "window_loss": losses[-1] + 0.1}
    if not method:
        return made
    steps = len(losses) - 1
    curve = [
        {"tokens": 10 * n, "flops": flops + 100 * n, "seconds": 36.0 * n, "loss": loss + 0.1}
        for n, loss in enumerate(losses)
    ]
    cost = {name: curve[-1][name] for name in ("tokens", "flops", "seconds")} | {"steps": steps}
    made["healing"] = cost | ({"curve": curve} if trained else {})
    return made


ROWS = [
    bare("parent", 0, 2.0) | {"window_loss": 2.1},
    row("", 0, 5.0),
    row("repair", 0, 4.0, flops=50),
    row("full", 0, 5.0, 3.6, 3.0),
    row("full", 1, 5.0, 3.8, 3.2),
    row("repair+full", 0, 4.0, 3.2, 2.9, flops=50),
    row("repair+full", 1, 4.2, 3.4, 3.0, flops=50),
    row("scratch", 0, 9.0, 7.0, 6.0),
]
COMPARED = SETTINGS | {"methods": "full,scratch", "budget": "1e3", "repair": "linear", "ridge": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    costs = {"FLOPs": "as one counts them"}
    return sweep.write_report(folder, COMPARED, ROWS, "again", costs)


def test_a_line_a_method_with_what_it_cost(report: dict[str, Any]) -> None:
    header, body = methods.table(report)
    lines = {line[2]: dict(zip(header, line, strict=True)) for line in body}
    assert list(lines) == ["", "chopped", "repair", "full", "repair+full", "scratch"]
    assert lines[""]["loss"] == "2.0000"
    assert [lines["full"][name] for name in ("steps", "tokens", "FLOPs", "hours")] == [
        "2", "20", "200", "0.02",
    ]  # fmt: skip
    assert lines["full"]["loss"] == "3.1000 ± 0.1414"
    assert lines["full"]["window loss"] == "3.2000 ± 0.1414"
    assert lines["repair+full"]["FLOPs"] == "250"
    assert lines["repair"]["FLOPs"] == "50"
    assert lines["chopped"]["FLOPs"] == ""
    assert lines["scratch"]["piqa"] == "0.560"


def test_who_is_best_and_what_lasts_of_a_repair(report: dict[str, Any]) -> None:
    best, lasts = methods.sentences(report)
    assert "input, 4 of 8 layers removed: repair+full has the lowest loss, 2.9500 (+0.9500" in best
    # Before: 1.0 and 0.8; after: 0.1 and 0.2, seed by seed.
    assert lasts == (
        "A repair is worth 0.9000 nats of window loss before full, and 0.1500 ± 0.0707 after it."
    )


@pytest.mark.parametrize(("in_time", "last", "repaired"), [(False, 200, 50), (True, 0.02, 0)])
def test_a_curve_a_method_against_what_it_cost(
    report: dict[str, Any], in_time: bool, last: float, repaired: float
) -> None:
    (axes,) = methods.curves(report, in_time).axes
    drawn: dict[Any, Any] = {line.get_label(): line for line in axes.get_lines()}
    scratch = "scratch (above, ends at 6.10)"
    assert set(drawn) == {"chopped", "repair", "full", "repair+full", scratch, "parent"}
    assert list(drawn["full"].get_xdata()) == pytest.approx([0, last / 2, last])
    assert list(drawn["full"].get_ydata()) == pytest.approx([5.1, 3.8, 3.2])
    assert list(drawn["repair"].get_xdata()) == [repaired]
    assert drawn["repair+full"].get_xdata()[0] == repaired
    assert list(drawn["chopped"].get_ydata()) == [5.1]
    low, high = axes.get_ylim()
    assert 5.1 < high < 6, "random weights leave room for the rest"
    assert low < 2.1


def test_seeds_that_were_measured_at_other_times(folder: Path) -> None:
    """Only what all of them know of is drawn, each at its own share of the way."""
    full = [row("full", 0, 5.0, 4.5, 3.6, 3.2, 3.0), row("full", 1, 5.0, 3.4)]
    report = sweep.write_report(folder / "seldom", COMPARED, [*ROWS[:2], *full], "again")
    (axes,) = methods.curves(report, False).axes
    drawn: dict[Any, Any] = {line.get_label(): line for line in axes.get_lines()}
    assert list(drawn["full"].get_xdata()) == pytest.approx([0, (400 + 100) / 2])
    assert list(drawn["full"].get_ydata()) == pytest.approx([5.1, 3.3])


def test_all_of_it_is_in_the_report(report: dict[str, Any], folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for said in (
        "Methods of healing had 1e3 each", "A repair is worth", "FLOPs: as one counts them.",
        "repair+full has the lowest loss",
    ):  # fmt: skip
        assert said in page
    assert report["conventions"] == {"FLOPs": "as one counts them"}
    assert "methods.png" in report["figures"]
    title = str(sweep.rich_table(report).title)
    assert "methods of healing" in title


def test_without_methods_there_is_none_of_it(tmp_path: Path) -> None:
    rows = [bare("parent", 0, 2.0), bare("input", 4, 3.0)]
    sweep.write_report(tmp_path, SETTINGS, rows, "")
    assert not (tmp_path / "methods.svg").exists()
    assert "Methods" not in (tmp_path / "report.html").read_text()
