"""`chopjax sweep` and `chopjax run` with a budget: methods of healing at equal compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import material

from chopjax import cli
from chopjax.checkpoint.describe import describe
from chopjax.models.flops import training_per_token
from chopjax.runs import costs
from chopjax.train.metrics import MetricsWriter

RECIPE = """
from chopjax.{verb}_settings import default_config


def get_config():
    config = default_config()
    config.model = {model!r}
    config.text.train = config.text.held_out = {text!r}
    config.text.workers = 1
    config.calibration.sequences = 6
    config.calibration.sequence_length = 32
    config.heal.data.batch_size = 2
    config.heal.data.sequence_length = 16
    config.heal.optimizer.warmup_steps = 50
    config.score.latency_length = 16
    return config
"""
TOKENS = 2 * 16  # of a step
METHODS = ["", "full", "repair", "repair+full", "lora"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.prepare(
        tmp_path_factory.mktemp("compare"), RECIPE, {"run": "pipeline", "sweep": "sweep"}
    )


def start(folder: Path, work: Path, verb: str, *flags: str) -> int:
    recipe = str(folder / f"{verb}.py")
    return cli.main([verb, "--config", recipe, "--workdir", str(work), *flags])


def step_flops(folder: Path, kept: int) -> int:
    """Of a step of a model with so many of its layers."""
    config = describe(str(folder / "model")).config.keep(range(kept))
    return TOKENS * training_per_token(config, 16)


SWEEP = [
    "--config.methods=full,repair,repair+full,lora", "--config.strategies=input",
    "--config.remove=2", "--config.repair=linear",
    "--config.lora.adapter.rank=2", "--config.lora.optimizer.peak_learning_rate=1e-2",
]  # fmt: skip


@pytest.fixture(scope="module")
def swept(folder: Path) -> list[dict[str, Any]]:
    budget = f"--budget={6.5 * step_flops(folder, 3)}"
    assert start(folder, folder / "swept", "sweep", *SWEEP, budget) == 0
    report = json.loads((folder / "swept" / "report.json").read_text())
    rows: list[dict[str, Any]] = report["points"]
    return rows


def test_every_method_costs_what_the_budget_allows(
    folder: Path, swept: list[dict[str, Any]]
) -> None:
    each = step_flops(folder, 3)
    assert [row["method"] for row in swept] == METHODS
    by_method = {row["method"]: row for row in swept}
    assert "healing" not in by_method[""]
    assert by_method["full"]["healing"]["steps"] == 6
    mended = by_method["repair"]["healing"]
    assert mended["steps"] == 0
    assert mended["flops"] > 0
    both = by_method["repair+full"]["healing"]
    assert both["steps"] == int((6.5 * each - mended["flops"]) / each) < 6
    cheaper = by_method["lora"]["healing"]["step_flops"]
    assert cheaper < 0.8 * each, "no gradients of the base"
    assert by_method["lora"]["healing"]["steps"] == int(6.5 * each / cheaper) > 6
    for name in ("full", "repair+full", "lora"):
        cost = by_method[name]["healing"]
        before = mended["flops"] if "repair" in name else 0
        assert cost["flops"] == pytest.approx(before + cost["steps"] * cost["step_flops"])
        assert 0 < cost["tokens"] <= cost["steps"] * TOKENS
        assert cost["curve"][0]["flops"] == pytest.approx(before)
        assert cost["curve"][-1]["flops"] == cost["flops"]
        assert cost["curve"][-1]["loss"] == by_method[name]["window_loss"]
        seconds = [at["seconds"] for at in cost["curve"]]
        assert seconds == sorted(seconds)
    # Training starts where the chop, and the repair, ended.
    for trained, plain in {"full": "", "lora": "", "repair+full": "repair"}.items():
        first = by_method[trained]["healing"]["curve"][0]["loss"]
        assert first == pytest.approx(by_method[plain]["window_loss"], abs=1e-4)
    assert by_method["lora"]["window_loss"] < by_method[""]["window_loss"]


def test_a_second_run_redoes_nothing_and_shows_it_all(
    folder: Path, swept: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    budget = f"--budget={6.5 * step_flops(folder, 3)}"
    assert start(folder, folder / "swept", "sweep", *SWEEP, budget) == 0
    shown = capsys.readouterr()
    assert "layers" not in shown.err
    assert "repair+full" in shown.out
    page = (folder / "swept" / "report.html").read_text()
    assert "A repair is worth" in page
    assert "FLOPs: model FLOPs" in page
    assert (folder / "swept" / "methods.svg").is_file()
    assert not list((folder / "swept" / "heal").iterdir())


def test_a_time_is_measured_once_and_its_steps_stay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A sweep that is interrupted goes on to the number of steps that was decided. Random weights
    have no layers of the parent's: they are trained once for all strategies."""
    few = ["--config.methods=scratch", "--config.strategies=input,output", "--config.remove=2"]
    few += ["--budget=0.1m", "--config.heal.checkpoints.every=2"]
    asked = []

    def seconds(*_: Any) -> float:
        asked.append(0.0)
        return 1.5 / len(asked)

    monkeypatch.setattr(costs, "step_seconds", seconds)
    with monkeypatch.context() as interrupted:
        written = MetricsWriter.write

        def write(self: Any, step: int, values: Any) -> None:
            written(self, step, values)
            if step == 2 and "loss" in values:
                raise KeyboardInterrupt

        interrupted.setattr(MetricsWriter, "write", write)
        assert start(folder, tmp_path / "work", "sweep", *few) == 130
    assert start(folder, tmp_path / "work", "sweep", *few) == 0
    assert len(asked) == 1
    report = json.loads((tmp_path / "work" / "report.json").read_text())
    healed = [row["healing"] for row in report["points"] if row["method"]]
    assert [(cost["steps"], cost["step_seconds"]) for cost in healed] == [(4, 1.5)] * 2
    assert healed[0] == healed[1]
    capsys.readouterr()
    (tmp_path / "work" / "step_times.json").write_text('{"a": 3}')
    assert start(folder, tmp_path / "work", "sweep", *few, "--config.seeds=1") == 2
    assert "step_times.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budget=7"], "7 FLOPs is less than a step of full takes"),
        (["--budget=0h"], "budget: '0h' is neither"),
        (["--budget=1e9", "--config.methods=ful"], "'ful' is not one of"),
        (["--budget=1e9", "--config.lora.data.batch_size=0"], "lora: the settings"),
        (["--budget=1e9", "--config.lora.adapter.rank=0"], "lora: adapter.rank is 0; give"),
        (
            [
                "--budget=1e9",
                "--config.strategies=magnitude",
                "--config.protect=0,1",
                "--config.remove=4",
            ],
            "methods: repair, repair+full: no point can be repaired",
        ),
    ],
)
def test_a_sweep_that_cannot_begin(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert start(folder, tmp_path / "work", "sweep", *SWEEP, *flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "work" / "points.jsonl").exists()


def test_a_run_within_a_budget(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    each = step_flops(folder, 3)
    flags = ["--config.chop.keep=0,3-4", "--config.chop.repair=linear", "--json"]
    budget = f"--budget={9.5 * each}"
    assert start(folder, tmp_path / "work", "run", *flags, "--budget=7") == 2
    assert "less than a step of healing" in capsys.readouterr().err
    assert start(folder, tmp_path / "work", "run", *flags, budget) == 0
    report = json.loads(capsys.readouterr().out)
    cost = report["healing"]["cost"]
    assert cost["step_flops"] == each
    assert cost["steps"] == report["healing"]["steps"] < 9, "the repair is paid, too"
    assert 8.5 * each < cost["flops"] <= 9.5 * each
    assert "of a budget" in (tmp_path / "work" / "report.html").read_text().lower()
    # The same budget in other words is the same.
    assert start(folder, tmp_path / "work", "run", *flags, f"--budget={9.5 * each:.3f}") == 0
    assert "again, because" not in capsys.readouterr().err


def test_a_run_has_a_budget_or_rounds(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(folder, tmp_path / "work", "run", "--budget=1e9", "--schedule=2x1") == 2
    assert "budget: not with chop.schedule" in capsys.readouterr().err
