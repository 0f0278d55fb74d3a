"""What a step costs, a repair, and a run by its metrics."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from chopjax.checkpoint.describe import describe
from chopjax.models.config import ModelConfig
from chopjax.models.flops import forward_per_token, layer_per_token
from chopjax.runs import costs, point_runs
from chopjax.runs.budget import Cost
from chopjax.runs.methods import parse_method
from chopjax.runs.points import Point
from chopjax.runs.settings import SweepSettings, TextSettings
from chopjax.train.settings import DataSettings, Settings

TOKENS = 2 * 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("costs") / "model"
    checkpoints.write_checkpoint(folder, "llama", num_hidden_layers=5, max_position_embeddings=64)
    checkpoints.write_tokenizer(folder)
    return folder


@pytest.fixture
def config(model: Path) -> ModelConfig:
    return describe(str(model)).config


def sweep(model: Path, **changes: Any) -> SweepSettings:
    heal = Settings(data=DataSettings(batch_size=2, sequence_length=16))
    adapter = dataclasses.replace(heal.adapter, rank=2)
    settings = SweepSettings(
        model=str(model),
        methods="full",
        text=TextSettings("t", "h"),
        heal=dataclasses.replace(heal, adapter=adapter),
    )
    return dataclasses.replace(settings, **changes)


def point(method: str, keep: tuple[int, ...] = (0, 3, 4)) -> Point:
    return Point("input", 2, keep, 0, parse_method(method))


def test_a_teacher_adds_its_forward_pass(model: Path, tmp_path: Path, config: ModelConfig) -> None:
    points = [(point(name), Cost()) for name in ("full", "scratch", "distill", "repair+distill")]
    each = [step.flops for _, step in point_runs.steps_of(sweep(model), tmp_path, config, points)]
    assert each[0] == each[1]
    assert each[2] == each[3] == each[0] + TOKENS * forward_per_token(config, 16)


def test_what_changes_no_shape_is_not_timed_again(
    model: Path, tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Any] = []

    def seconds(_: ModelConfig, heal: Settings, teacher: Any) -> float:
        timed.append((heal.adapter.base if heal.adapter.rank else "", teacher is not None))
        return 0.1 * len(timed)

    monkeypatch.setattr(costs, "step_seconds", seconds)
    faster = {"optimizer": {"peak_learning_rate": 1.0, "warmup_steps": 5}}
    settings = sweep(model, budget="1h", scratch=faster)
    names = ("full", "scratch", "repair+full", "lora", "qlora", "repair+lora", "distill")
    found = point_runs.steps_of(settings, tmp_path, config, [(point(n), Cost()) for n in names])
    assert timed == [("", False), ("float", False), ("nf4", False), ("", True)]
    assert [step.seconds for _, step in found] == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.3, 0.2, 0.4])
    assert found[0][0] == 36_000
    other = point("full", (0, 1, 4))
    assert point_runs.steps_of(settings, tmp_path, config, [(other, Cost())])[0] == found[0]
    assert len(json.loads((tmp_path / "step_times.json").read_text())) == 4


def test_a_repaired_student_learns_from_the_sweeps_own_parent(model: Path, tmp_path: Path) -> None:
    """Whatever that was cut from."""
    settings = sweep(model)
    for start, teacher in ((None, ("parent", "")), (tmp_path, (str(model), "0,3-4"))):
        made = point_runs.config_of(settings, tmp_path, point("repair+distill"), 9, start)
        assert (made.teacher.model, made.teacher.map) == teacher


def test_a_repair_costs_the_layers_that_it_runs(config: ModelConfig) -> None:
    """The parent's layers 0-2, up to where the gap ends, and the student's layer 0 before and after
    its repair."""
    keep, layer = (0, 3, 4), layer_per_token(config, 16)
    assert 5 * layer == forward_per_token(config, 16) - 2 * config.table_dim * config.vocab_size
    sums = 4 * config.embed_dim**2
    found = costs.repair_flops(config, keep, "linear", 100, 16)
    assert found == pytest.approx(100 * (5 * layer + sums))
    about = {"kind": "linear", "tokens": 100, "sequence_length": 16, "seconds": 2.5}
    assert costs.repair_cost(config, keep, about) == Cost(found, 2.5)


def test_a_run_costs_what_its_metrics_say_and_what_came_before(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "eval_loss": 5.0, "eval_tokens": 9},
        *({"step": n, "loss": 4.0, "tokens": 30 * n, "step_seconds": 0.5} for n in (1, 2, 3)),
        {"step": 3, "eval_loss": 3.0, "eval_tokens": 9},
        {"step": 3, "run_mfu": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cost = costs.trained(tmp_path, Cost(100, 0.0), Cost(50, 2.0))
    last = {"steps": 3, "tokens": 90, "flops": 350, "seconds": 3.5}
    first = {"steps": 0, "tokens": 0, "flops": 50, "seconds": 2.0}
    assert cost["curve"] == [first | {"loss": 5.0}, last | {"loss": 3.0}]
    assert {name: cost[name] for name in last} == last
    assert (cost["step_flops"], cost["step_seconds"]) == (100, None)
