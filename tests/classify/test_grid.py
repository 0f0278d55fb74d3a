"""The grid: what is done once, what is not done again, and what is shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from classify import material

from chopjax.checkpoint.load import load
from chopjax.classify import grid
from chopjax.classify.depth import Counted, Depth, run_cell
from chopjax.classify.results import RESULTS
from chopjax.classify.settings import Cell, TrainSettings
from chopjax.classify.task import prepare
from chopjax.errors import UserError
from chopjax.progress import Bar


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.write(tmp_path_factory.mktemp("grid"))


def run(folder: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    rows: list[dict[str, Any]]
    rows = grid.classify(*prepare(material.settings(folder, **options)), out)[0]["rows"]
    assert json.loads((out / RESULTS).read_text())["rows"] == rows
    return rows


def test_rows_that_are_there_are_not_measured_again(folder: Path, tmp_path: Path) -> None:
    first = run(folder, tmp_path, layers="1,3", methods=("none",))
    assert [(r["keep"], r["method"], r["head"], r["seed"]) for r in first] == [
        ("0", "none", "lm", 0),
        ("0-2", "none", "lm", 0),
    ]
    more: dict[str, Any] = {"layers": "1,all", "methods": ("none",), "heads": ("lm", "classifier")}
    rows = run(folder, tmp_path, seeds=2, **more)
    assert rows[:2] == first
    assert len(rows) == 2 + 2 * 2 * 2 - 1
    one = rows[0]
    assert (one["layers"], one["steps"], one["trained_parameters"]) == (1, 0, 0)
    assert (one["train_examples"], one["test_examples"]) == (12, 7)
    assert one["chance"] == pytest.approx(1 / 3)
    assert all(0 <= row["accuracy"] <= 1 and row["macro_f1"] <= 1 for row in rows)
    trained = [row for row in rows if row["head"] == "classifier"]
    assert {(r["steps"], r["epochs"], r["trained_parameters"]) for r in trained} == {(12, 1, 96)}
    assert rows[-1]["kept_parameters"] > one["kept_parameters"]


def test_a_stop_keeps_what_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_cell
    done: list[Cell] = []

    def stopped(depth: Depth, cell: Cell, counted: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(cell)
        return real(depth, cell, counted)

    options: dict[str, Any] = {"layers": "1,2", "methods": ("none",), "seeds": 2}
    monkeypatch.setattr("chopjax.classify.grid.run_cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path, **options)
    kept = json.loads((tmp_path / RESULTS).read_text())["rows"]
    assert [row["seed"] for row in kept] == [0, 1]
    monkeypatch.setattr("chopjax.classify.grid.run_cell", real)
    rows = run(folder, tmp_path, **options)
    assert rows[:2] == kept
    (other := tmp_path / "at once").mkdir()
    at_once = run(folder, other, **options)
    for row, other_row in zip(rows, at_once, strict=True):
        assert row | {"seconds": 0} == other_row | {"seconds": 0}


def test_what_two_strategies_keep_is_trained_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_cell
    done: list[Cell] = []

    def noted(depth: Depth, cell: Cell, counted: Any) -> Any:
        done.append(cell)
        return real(depth, cell, counted)

    monkeypatch.setattr("chopjax.classify.grid.run_cell", noted)
    options: dict[str, Any] = {"strategies": ("first", "deepest", "max-gap"), "methods": ("none",)}
    rows = run(folder, tmp_path, layers="2,all", **options)
    assert {(r["strategy"], r["keep"]) for r in rows} == {
        ("first", "0-1"), ("deepest", "0,3"), ("max-gap", "0,3"),
        ("first", "0-3"), ("deepest", "0-3"), ("max-gap", "0-3"),
    }  # fmt: skip
    assert [(cell.keep, cell.strategy) for cell in done] == [
        ((0, 1), "first"), ((0, 1, 2, 3), "first"), ((0, 3), "deepest"),
    ]  # fmt: skip


def test_programs_of_a_depth_serve_all_seeds(
    folder: Path, tmp_path: Path, lowered: list[str]
) -> None:
    # Alike in length, whichever a seed draws.
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    for file, letters in ((train, "xyz"), (test, "abc")):
        rows = [{"text": letters[number % 3], "label": number % 3} for number in range(36)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def programs(seeds: int) -> int:
        out = tmp_path / f"{seeds} {len(list(tmp_path.iterdir()))}"
        options = {"layers": "1", "methods": ("full", "none"), "train": (str(train),)}
        before = len(lowered)
        run(folder, out, seeds=seeds, test=(str(test),), **options)
        return len(lowered) - before

    programs(3)  # what is made once a process
    assert 0 < programs(1) == programs(3)


def test_training_leaves_the_parent_as_it_was(folder: Path) -> None:
    task, _, (cell,) = prepare(material.settings(folder, learning_rate=0.1))
    params = load(task.description, keep=cell.keep, dtype="float32").params
    before = jax.tree.map(np.array, params)
    trained, _ = run_cell(Depth(task, cell.keep, params), cell, Counted(Bar("", 1, "cells", 0), 1))
    assert trained is not None
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), before, dict(trained.trainable))
    assert all(jax.tree.leaves(moved))  # AdamW decays norms, too
    jax.tree.map(np.testing.assert_array_equal, before, params)


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured")
    run(folder, out, methods=("none",), heads=("classifier",))
    return out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"training": TrainSettings(epochs=2)}, r"epochs: was 1, is 2\nGive another --output"),
        ({"learning_rate": 0.5}, "with learning_rate 0.001; now asked is learning_rate 0.5"),
        ({"test": "other"}, "test: was '.*', is "),
    ],
)
def test_rows_of_other_conditions_do_not_mix(
    folder: Path, measured: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    if options.get("test"):
        (other := tmp_path / "other.jsonl").write_text('{"text": "a", "label": 0}\n')
        options = {"test": (str(other),)}
    with pytest.raises(UserError, match=said):
        run(folder, measured, methods=("none",), heads=("classifier",), **options)


def test_rows_of_another_model_do_not_mix(measured: Path, tmp_path: Path) -> None:
    other = material.write(tmp_path, seed=1)
    with pytest.raises(UserError, match=r"another model, .*grid.*: the weights differ"):
        run(other, measured, methods=("none",), heads=("classifier",))


def test_another_template_adds_its_rows(folder: Path, measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(material.TEMPLATE.replace("it is", "what is"))
    rows = run(folder, measured, methods=("none",), template=str(path))
    assert [row["task"] for row in rows] == ["toy", "other"]
