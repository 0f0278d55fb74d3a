"""Weights & Biases, played by a module that writes down what it is told. No network."""

from __future__ import annotations

import json
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from train.runs import STEPS, lines, prepare, recipe, signal_after

from chopjax.errors import UserError
from chopjax.train.loop import train
from chopjax.train.wandb_run import wandb_run


class Run:
    def __init__(self, **about: Any):
        self.about = about
        self.rows: dict[int, dict[str, float]] = {}
        self.exit_code: int | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        assert step >= max(self.rows, default=0), "wandb drops what comes late"
        self.rows.setdefault(step, {}).update(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that wandb.init was asked for."""
    found: list[Run] = []

    def init(**about: Any) -> Run:
        found.append(Run(**about))
        return found[-1]

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return found


def test_every_line_is_logged_and_a_resumed_run_is_the_same_run(
    data: Path, tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(data, "log.wandb=my-project")
    with monkeypatch.context() as patch:
        signal_after(patch, 7, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "heal")
    (first,) = runs
    assert first.about["project"] == "my-project"
    assert first.about["name"] == "heal"
    assert first.about["dir"] == str(tmp_path / "heal")
    assert first.about["config"]["optimizer"]["peak_learning_rate"] == 3e-3
    assert first.exit_code == 1
    train(recipe(data, "log.wandb=my-project", "evaluation.every=6"), tmp_path / "heal")
    again = runs[1]
    assert again.about["id"] == first.about["id"]
    assert again.about["resume"] == "allow"
    assert again.exit_code == 0
    logged = first.rows | again.rows
    assert {step: row["loss"] for step, row in logged.items() if "loss" in row} == lines(
        tmp_path / "heal", "loss"
    )
    assert logged[STEPS]["eval_loss"] == lines(tmp_path / "heal", "eval_loss")[STEPS]
    # Done: nothing more is logged as a new run.
    train(recipe(data, "log.wandb=my-project"), tmp_path / "heal")
    assert {run.about["id"] for run in runs} == {first.about["id"]}


def test_another_run_in_the_same_folder_has_another_id(tmp_path: Path, runs: list[Run]) -> None:
    def begin(project: str, config: dict[str, Any], step: int) -> str:
        with wandb_run(project, tmp_path, config, step):
            pass
        return str(runs[-1].about["id"])

    first = begin("p", {"seed": 0, "log": {"profile": ""}}, 0)
    assert begin("p", {"seed": 0, "log": {"profile": "1-2"}}, 0) == first, "this may change"
    assert begin("p", {"seed": 1, "log": {"profile": ""}}, 5) == first, "resumed with --force"
    other = begin("p", {"seed": 1, "log": {"profile": ""}}, 0)
    assert other != first
    assert begin("q", {"seed": 1, "log": {"profile": ""}}, 0) not in (first, other)
    odd = '{"id": 5, "project": "p", "config": []}'
    (tmp_path / "wandb_run.json").write_text(odd)
    with pytest.raises(UserError, match=r"wandb_run\.json: not what a training run writes"):
        begin("p", {}, 3)
    assert (tmp_path / "wandb_run.json").read_text() == odd


def test_without_wandb_the_error_comes_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        train(recipe(data, "log.wandb=p"), tmp_path / "heal")
    assert not (tmp_path / "heal").exists()


def test_what_wandb_refuses_is_the_users_to_mend(
    data: Path, tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**about: Any) -> Run:
        raise RuntimeError("api_key not configured (no-tty)\nmore")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(UserError, match=r"api_key not configured.*WANDB_MODE=offline"):
        train(recipe(data, "log.wandb=p"), tmp_path / "heal")


def test_wandb_is_not_imported_where_it_is_not_asked_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    train(recipe(data), tmp_path / "heal")
    assert not (tmp_path / "heal" / "wandb_run.json").exists()
    assert json.loads((tmp_path / "heal" / "checkpoints" / "12" / "run.json").read_text())
