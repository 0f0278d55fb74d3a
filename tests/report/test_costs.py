"""The columns of Just CHOP's tables, from results files and from a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from report.rows import SETTINGS, row
from report.test_task_table import write

from chopjax.cli import main

SIZE = {"parameters": 1000, "not_zero": 600, "bytes": 4000}


def costs(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["compare", *map(str, words), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["costs"]
    return found


def write_sweep(folder: Path, timed: Mapping[str, Any] = {}) -> Path:
    points = [row("input", 4, 2.0, seed=seed) | {"perplexity": 8.0 + seed} for seed in (0, 1)]
    points.append(row("input:4+int8", 4, 2.5) | SIZE | {"weights": "int8"})
    parent = row("parent", 0, 1.0) | {"parameters": 2000, "not_zero": 2000, "bytes": 8000}
    report = {
        "chopjax_version": "0.1.0",
        "settings": SETTINGS,
        "num_layers": 8,
        "parent": parent | timed,
        "points": [point | timed for point in points],
    }
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_the_drop_is_that_of_the_mean_over_what_all_have_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {"wikitext": {"word_perplexity,none": 12.5}}
    tasks = {"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0, 1.0, 1.0, 0.0]}
    parent = write(tmp_path / "p", "parent", tasks | {"c": [1.0]}, model_size=SIZE, results=text)
    other = write(tmp_path / "o", "other", {"a": [1.0, 0.0, 0.0, 0.0], "b": [0.0, 1.0, 1.0, 0.0]})
    first, second = costs(capsys, parent, other)
    assert first["mean_accuracy"] == pytest.approx((0.5 + 0.75) / 2)
    assert second["mean_accuracy"] == pytest.approx((0.25 + 0.5) / 2)
    assert second["relative_drop"] == pytest.approx(1 - 0.75 / 1.25)
    assert (first["size"], second["size"]) == (SIZE, {})
    assert first["perplexities"] == {"wikitext": 12.5}
    assert main(["compare", str(parent), str(other), "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "| parent | 1,000 | 600 | 4,000 | 12.50 | 0.6250 |  | – |" in out
    assert "| other | – | – | – | – | 0.3750 | 40.0% | – |" in out


def test_a_suite_has_its_own_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, mean in (("p", 0.6), ("o", 0.45)):
        suite = {"suite": {"mean,none": mean}}
        files.append(write(tmp_path / name, name, {"a": [1.0]}, results=suite))
    _, second = costs(capsys, *files)
    assert second["relative_drop"] == pytest.approx(0.25)


def test_the_points_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    parent, chop, quantized = costs(capsys, sweep)
    assert [each["name"] for each in (parent, chop, quantized)] == [
        "parent",
        "input, 4 of 8 removed",
        "input:4+int8, 4 of 8 removed",
    ]
    assert chop["perplexities"] == {"held-out text": 8.5}, "the mean over seeds"
    assert chop["size"] == {}, "what an earlier chopjax did not measure"
    assert quantized["size"] == SIZE
    assert chop["mean_accuracy"] == pytest.approx((0.52 + 0.6) / 2)
    # Beside results of another model.
    other = write(tmp_path / "o", "other", {"piqa": [1.0, 0.0]})
    *_, last = costs(capsys, sweep, other)
    assert last["mean_accuracy"] == 0.5
    assert last["relative_drop"] == pytest.approx(1 - 0.5 / 0.51)
    assert main(["compare", str(sweep), "--plot", str(tmp_path / "plot")]) == 2
    assert "a sweep has its figures in its workdir" in capsys.readouterr().err


def test_a_run_knows_the_time_of_its_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {name: {"latency_seconds": s} for name, s in (("parent", 0.2), ("healed", 0.1))}
    report = {"chopjax_version": "0.1.0", "settings": {}, "models": models}
    (tmp_path / "report.json").write_text(json.dumps(report))
    files = [
        write(tmp_path / "scores" / name / "folder", name, {"a": [1.0, 0.0]}) for name in models
    ]
    found = costs(capsys, *files)
    assert [each["latency_seconds"] for each in found] == [0.2, 0.1]
    assert [each["speed_up"] for each in found] == [1, 2]


@pytest.mark.parametrize(
    "models",
    [
        None,
        [],
        {"parent": 3},
        {"healed": {"latency_seconds": [1]}},
        {"healed": {"latency_seconds": 0}, "parent": {"latency_seconds": 1}},
    ],
)
def test_a_report_of_a_run_that_is_damaged_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], models: Any
) -> None:
    report = {"chopjax_version": "0.1.0", "settings": {}, "models": models}
    file = write(tmp_path / "scores" / "healed" / "folder", "healed", {"a": [1.0, 0.0]})
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert main(["compare", str(file)]) == 2
    assert f"{tmp_path / 'report.json'}: not the report" in capsys.readouterr().err
    (tmp_path / "report.json").write_text("[]")  # another program's says nothing of latency
    assert costs(capsys, file)[0]["latency_seconds"] is None


@pytest.mark.parametrize(
    "change",
    [{"points": 3}, {"points": [{}]}, {"parent": []}, {"parent": {"perplexity": "much"}}],
)
def test_a_report_of_a_sweep_that_is_damaged_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any
) -> None:
    path = write_sweep(tmp_path / "sweep") / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert main(["compare", str(path.parent)]) == 2
    assert f"{path}: not as `chopjax sweep` writes it" in capsys.readouterr().err


def test_a_sweep_that_was_asked_to_knows_the_time_of_its_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = {"latency": {"seconds": 0.02, "speed_up": 1.9, "batch": 1, "length": 512}}
    sweep = write_sweep(tmp_path / "sweep", timed)
    assert [each["latency_seconds"] for each in costs(capsys, sweep)] == [0.02] * 3
    assert main(["compare", str(sweep), "--markdown"]) == 0
    assert "| 20.0 | 1.90x |" in capsys.readouterr().out
