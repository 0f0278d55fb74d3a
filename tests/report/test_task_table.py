"""`chopjax compare`: pairing, significance, and what it says where it cannot pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from chopjax.cli import main
from chopjax.report import paired
from chopjax.report.results_file import choose_metric, read_items, read_results
from chopjax.report.task_rendering import figure, stars
from chopjax.report.task_table import compare

DATE = "2026-01-01T00-00-00.000000"
RNG = np.random.default_rng(0)
RIGHT = {"a": RNG.random(300) < 0.6, "b": RNG.random(300) < 0.5}


def write(
    folder: Path,
    model: str,
    tasks: dict[str, list[Any]],
    metric: str = "acc",
    samples: bool = True,
    prompt: str = "p",
    **more: Any,
) -> Path:
    """A results file and samples files as the harness names them. tasks: values by document."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for task, values in tasks.items():
        results[task] = {
            "alias": task,
            f"{metric},none": _metric(metric, values),
            f"{metric}_stderr,none": 0.01,
            "sample_len": len(values),
        }
        rows = [
            {
                "doc_id": number,
                "filter": "none",
                "doc_hash": f"{task} {number}",
                "prompt_hash": f"{prompt} {number}",
                "target_hash": "t",
                metric: value,
            }
            for number, value in enumerate(values)
        ]
        if samples:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"samples_{task}_{DATE}.jsonl").write_text(text)
    content = {"results": results, "model_name": model}
    content |= {key: value for key, value in more.items() if key != "results"}
    content["results"] |= more.get("results", {})
    path = folder / f"results_{DATE}.json"
    path.write_text(json.dumps(content))
    return path


def _metric(metric: str, values: list[Any]) -> float:
    if metric == "f1":
        return float(f1_score(*zip(*values, strict=True)))
    if metric == "nats_per_token":
        return float(-np.sum([v[0] for v in values]) / np.sum([v[1] for v in values]))
    return float(np.mean(values))


def as_values(right: np.ndarray) -> list[float]:
    return right.astype(float).tolist()


def test_interval_and_p_agree_with_scipy(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path / name, name, {"t": as_values(right)}) for name, right in RIGHT.items()
    )
    table = compare([read_results(str(one)), read_results(str(two))])
    cell = table.rows[0].cells[1]
    assert cell is not None
    assert cell.interval is not None
    assert cell.p is not None
    difference = RIGHT["b"].astype(float) - RIGHT["a"]
    assert cell.difference == pytest.approx(difference.mean())
    theirs = scipy.stats.bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    assert cell.interval == pytest.approx(tuple(theirs), abs=0.005)
    # The same hypothesis by McNemar's exact test.
    better, worse = (difference > 0).sum(), (difference < 0).sum()
    exact = scipy.stats.binomtest(int(min(better, worse)), int(better + worse)).pvalue
    assert cell.p == pytest.approx(exact, abs=0.03)
    assert not table.notes


def test_resampling_rows_and_counts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few distinct rows are drawn by how often, many one by one: the same distribution."""
    few = np.stack([RIGHT["a"], RIGHT["b"]], axis=1).astype(float)
    many = few + 1e-9 * np.arange(600).reshape(300, 2)
    for column in (0, 1):
        ours = [paired._resampled_sums(rows)[:, column] for rows in (few, many)]
        assert np.mean(ours[0]) == pytest.approx(np.mean(ours[1]), rel=0.005)
        assert np.std(ours[0]) == pytest.approx(np.std(ours[1]), rel=0.03)


def test_ratios_and_f1(tmp_path: Path) -> None:
    losses = [[-3.0 * n, n] for n in range(1, 30)]
    path = write(tmp_path / "x", "x", {"c4": losses}, "nats_per_token")
    found = read_items(path.parent / f"samples_c4_{DATE}.jsonl", "nats_per_token,none")
    assert found is not None
    assert found.statistic(found.columns_DC.sum(axis=0)) == pytest.approx(3.0)
    pairs = [[int(gold), int(said)] for gold, said in zip(RIGHT["a"], RIGHT["b"], strict=True)]
    path = write(tmp_path / "y", "y", {"mrpc": pairs}, "f1")
    found = read_items(path.parent / f"samples_mrpc_{DATE}.jsonl", "f1,none")
    assert found is not None
    expected = f1_score(*zip(*pairs, strict=True))
    assert found.statistic(found.columns_DC.sum(axis=0)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("other", "note"),
    [
        ({"samples": False}, "no samples files beside it"),
        ({"prompt": "q"}, "300 of 300 prompts differ"),
        ({"tasks": {"t": [1.0] * 299}}, "300 documents against 299"),
        ({"tasks": {"u": [1.0] * 300}}, None),
    ],
)
def test_what_cannot_be_paired_is_said(
    other: dict[str, Any], note: str | None, tmp_path: Path
) -> None:
    one = write(tmp_path / "a", "m/a", {"t": as_values(RIGHT["a"])})
    given = {"tasks": {"t": as_values(RIGHT["b"])}} | other
    two = write(tmp_path / "b", "m/b", **given)
    table = compare([read_results(str(one)), read_results(str(two))])
    assert table.models == ["a", "b"]
    row = table.rows[0]
    if note is None:
        assert [r.task for r in table.rows] == ["t", "u"]
        assert row.cells[1] is None
        return
    assert any(note in said for said in table.notes)
    assert row.cells[1] is not None
    assert row.cells[1].difference is not None
    assert row.cells[1].p is None


def test_other_documents_and_other_samples_are_noticed(tmp_path: Path) -> None:
    one = write(tmp_path / "a", "a", {"t": as_values(RIGHT["a"])})
    two = write(tmp_path / "b", "b", {"t": as_values(RIGHT["b"])})
    file = two.parent / f"samples_t_{DATE}.jsonl"
    file.write_text(file.read_text().replace('"t 7"', '"changed"'))
    table = compare([read_results(str(one)), read_results(str(two))])
    assert "1 of 300 documents differ" in table.notes[0]
    file.write_text("".join(file.read_text().replace("changed", "t 7").splitlines(True)[:299]))
    table = compare([read_results(str(one)), read_results(str(two))])
    assert "its samples give" in table.notes[0]


def test_groups(tmp_path: Path) -> None:
    """A weighted group hides its tasks; the mean of a suite stands below them. Both are paired by
    their tasks."""
    values = {
        name: [as_values(right[:100]), as_values(right[100:])] for name, right in RIGHT.items()
    }
    files = []
    for name, (first, second) in values.items():
        pooled = float(np.mean(first + second))
        mean = (np.mean(first) + np.mean(second)) / 2
        weighted: dict[str, Any] = {
            "results": {"g": {"acc,none": pooled}}, "group_subtasks": {"g": ["x", "y"]},
        }  # fmt: skip
        suite = {"mean,none": mean, "mean_of": {"x": "acc", "y": "acc"}}
        both: dict[str, Any] = {"results": {"s": suite}, "group_subtasks": {"s": ["x", "y"]}}
        tasks = {"x": first, "y": second}
        files.append(
            [
                read_results(str(write(tmp_path / kind / name, name, tasks, **more)))
                for kind, more in (("weighted", weighted), ("suite", both))
            ]
        )
    difference = RIGHT["b"].mean() - RIGHT["a"].mean()
    (row,) = compare([pair[0] for pair in files]).rows
    assert row.task == "g"
    assert row.cells[1] is not None
    assert row.cells[1].difference == pytest.approx(difference)
    low, high = row.cells[1].interval or (0, 0)
    spread = np.sqrt(0.5 / 300)  # of a difference of accuracies, roughly
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    rows = compare([pair[1] for pair in files]).rows
    assert [row.task for row in rows] == ["x", "y", "s"]
    assert rows[-1].cells[1] is not None
    assert rows[-1].cells[1].p is not None


def test_choice_of_metric() -> None:
    keys = ["acc,none", "acc_norm,none", "acc,other"]
    assert choose_metric(keys, None) == "acc_norm,none"
    assert choose_metric(keys, "acc") == "acc,none"
    assert choose_metric(keys, "acc,other") == "acc,other"
    assert choose_metric(keys, "f1") is None
    assert stars(0.02) == "*"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "a", "a_1", {"t": as_values(RIGHT["a"])}, chance={"t": 0.25})
    quantized = {"model_args": {"weights": "int8"}}
    two = write(tmp_path / "b", "b|2", {"t": [0.0] * 300}, config=quantized)
    plot = tmp_path / "plot.png"
    assert main(["compare", str(one), str(two), "--markdown", "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "| task | metric | a\\_1 | b\\|2 (int8) | difference | 95 % | p | chance |"
    assert printed[1].count("---") == 8
    assert "\\*\\*\\*" in printed[2]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in plot.with_suffix(".svg").read_bytes()
    # A folder stands for its newest file.
    assert main(["compare", str(tmp_path / "a"), str(two), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"][0]["cells"][1]["p"] < 0.001
    assert main(["compare", str(one), str(two)]) == 0
    assert "paired bootstrap" in capsys.readouterr().out


def test_figure_holds_values_chance_and_differences(tmp_path: Path) -> None:
    one = write(tmp_path / "a", "a", {"t": as_values(RIGHT["a"])}, chance={"t": 0.25})
    two = write(tmp_path / "b", "b", {"t": as_values(RIGHT["b"])})
    table = compare([read_results(str(one)), read_results(str(two))])
    left, right = figure(table).axes
    assert set(left.get_legend_handles_labels()[1]) == {"a", "b", "chance"}
    points = [container[0].get_xdata()[0] for container in left.containers]
    assert points == [RIGHT["a"].mean(), RIGHT["b"].mean()]
    (only,) = right.containers
    assert only[0].get_xdata()[0] == pytest.approx(RIGHT["b"].mean() - RIGHT["a"].mean())


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("{}", "not a results file"), ("{", "JSON")],
)
def test_mistakes(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results_x.json"
    if content is not None:
        path.write_text(content)
    assert main(["compare", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_more_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "a", "a", {"t": [1.0, 0.0]})
    for words, message in (
        ([str(one), str(one)], "the same results twice"),
        ([str(one), "--metric", "f1"], "no task with metric f1"),
        ([str(one), "--plot", str(tmp_path / "no" / "plot")], "no folder"),
    ):
        assert main(["compare", *words]) == 2
        assert message in capsys.readouterr().err
    file = one.parent / f"samples_t_{DATE}.jsonl"
    file.write_text("{]\n")
    other = write(tmp_path / "b", "b", {"t": [1.0, 0.0]})
    assert main(["compare", str(other), str(one)]) == 2
    assert "line 1: not a sample" in capsys.readouterr().err
