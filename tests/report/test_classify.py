"""The table and the figure of a grid's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chopjax.errors import UserError
from chopjax.report.classify import accuracy_figure, check_report, points, table, write_report


def row(layers: int, accuracy: float, seed: int = 0, **options: Any) -> dict[str, Any]:
    usual = {
        "task": "sst2",
        "strategy": "first",
        "method": "full",
        "head": "lm",
        "layers": layers,
        "seed": seed,
        "accuracy": accuracy,
        "macro_f1": accuracy / 2,
        "held_out_accuracy": 0.5,
        "kept_parameters": 100 * layers,
        "trained_parameters": 7,
        "chance": 0.5,
        "majority": 0.6,
    }
    return usual | options


ROWS = [
    row(4, 0.9, seed=1),
    row(1, 0.5),
    row(4, 0.7),
    row(1, 0.55, method="none"),
    row(2, 0.25, task="trec", chance=1 / 6, majority=0.2),
]
RESULTS: dict[str, Any] = {
    "model": {"name": "some/<model>", "num_layers": 4, "parameters": 1000},
    "tasks": {
        task: {"conditions": {"template": {"text": "{x}:", "classes": {"a": [0]}}, "epochs": 3}}
        for task in ("sst2", "trec")
    },
    "rows": ROWS,
}


def test_the_table_has_means_and_spreads() -> None:
    header, body = table(RESULTS)
    by = {name: [line[place] for line in body] for place, name in enumerate(header)}
    assert by["task"] == ["sst2", "sst2", "sst2", "trec"]
    assert by["layers"] == ["1", "4", "1", "2"]
    assert by["method"] == ["full", "full", "none", "full"]
    assert by["seeds"] == ["1", "2", "1", "1"]
    assert by["accuracy"] == ["50.0", "80.0 ± 14.1", "55.0", "25.0"]
    assert by["macro-F1"][1] == "40.0 ± 7.1"
    assert by["of parent"] == ["10.0%", "40.0%", "10.0%", "20.0%"]


def test_the_figure_has_a_panel_a_task_and_a_line_a_method() -> None:
    assert len(points(RESULTS)) == 4
    figure = accuracy_figure(RESULTS)
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["sst2", "trec"]
    names = [list(p.get_legend_handles_labels()[1]) for p in panels]
    assert set(names[0]) == {"full", "none", "commonest class", "chance"}
    assert set(names[1]) == {"full", "commonest class", "chance"}
    drawn = next(c for c in panels[0].containers if c.get_label() == "full")
    assert drawn[0].get_xydata().tolist() == [[1.0, 50.0], [4.0, pytest.approx(80.0)]]
    levels = {line.get_label(): np.asarray(line.get_ydata())[0] for line in panels[1].lines}
    assert levels["chance"] == pytest.approx(100 / 6)
    assert levels["commonest class"] == pytest.approx(20)


def test_the_page_and_whose_files_stand_there(tmp_path: Path) -> None:
    write_report(tmp_path, RESULTS, "chopjax classify <m>")
    page = (tmp_path / "report.html").read_text()
    assert "some/&lt;model&gt; has 4 layers" in page
    assert "80.0 ± 14.1" in page
    assert "chopjax classify &lt;m&gt;" in page
    assert "data:image/svg+xml" in page
    check_report(tmp_path)
    write_report(tmp_path, RESULTS, "")
    (tmp_path / "accuracy.png").write_bytes(b"a photograph")
    with pytest.raises(UserError, match=r"holds accuracy\.png, which would be written over"):
        check_report(tmp_path)
