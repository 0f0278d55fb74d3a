"""benchmarks/real_model.py on a model of five layers: every part runs, and none runs twice."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from local_tasks import write_tasks
from runs import material

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "real_model.py"
SMALL = """
--config.strategies=input,similarity --config.remove=3 --config.score.tasks=tiny_choice
--config.score.limit=4 --config.calibration.sequences=4 --config.calibration.sequence_length=16
--config.heal.data.batch_size=2 --config.heal.data.sequence_length=16 --config.heal.total_steps=2
--config.heal.optimizer.warmup_steps=1 --config.text.workers=1 --heal 3 --best 1 --seeds 0 --json
""".split()


@pytest.fixture(scope="module")
def program() -> Any:
    spec = importlib.util.spec_from_file_location("real_model", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_model"] = module  # where dataclasses look for their types
    spec.loader.exec_module(module)
    yield module
    del sys.modules["real_model"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What --shared is, and a model."""
    material.prepare(tmp_path, "", {}, lines=48)
    for name in ("corpora", "tasks"):
        (tmp_path / name).mkdir()
    (tmp_path / "text.jsonl").rename(tmp_path / "corpora" / "mixed.train.jsonl")
    write_tasks(tmp_path / "tasks" / "lm_eval")
    return tmp_path


@pytest.mark.thorough
def test_one_command_does_it_all_and_once(
    program: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = folder / "work"
    places = ["--shared", str(folder), "--model", str(folder / "model"), "--workdir", str(work)]
    monkeypatch.setattr(sys, "argv", ["real_model.py", *places, *SMALL])
    assert program.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("hours here, where nothing is done")
    points = json.loads(printed[-1])["points"]
    kinds = [(row["strategy"], row["remove"], row["method"]) for row in points]
    assert kinds[:2] == [("input", 3, ""), ("similarity", 3, "")]
    lowest = min(points[:2], key=lambda row: row["loss"])
    assert kinds[2:] == [(lowest["strategy"], 3, "repair"), (lowest["strategy"], 3, "full")]
    assert len({row["loss"] for row in points if row["keep"] == lowest["keep"]}) == 3
    drawn = {path.name for path in work.glob("*.png")}
    assert drawn >= {"overview.png", "accuracy.png", "loss.png", "latency.png"}
    assert (work / "analysis-0" / "distance.png").exists()
    models = json.loads((work / "latency.json").read_text())["models"]
    assert [model["layers"] for model in models] == [5, 2, 0]
    parts = [(work / "text" / f"{name}.jsonl").read_text() for name in ("train", "held_out")]
    assert "".join(parts) == (folder / "corpora" / "mixed.train.jsonl").read_text()

    before = (work / "points.jsonl").read_bytes(), (work / "latency.json").stat().st_mtime_ns
    assert program.main() == 0
    again = capsys.readouterr().out.splitlines()
    assert again[1:] == printed[1:]
    after = (work / "points.jsonl").read_bytes(), (work / "latency.json").stat().st_mtime_ns
    assert after == before


def test_the_best_are_those_of_the_lowest_loss_and_of_other_layers(program: Any) -> None:
    points = [
        {"strategy": name, "remove": n, "keep": keep, "loss": loss}
        for name, n, keep, loss in (
            ("input", 2, "0,3-5", 4.0),
            ("output", 2, "0-2,5", 3.0),
            ("deepest", 2, "0-2,5", 3.0),
            ("taylor", 2, "0,2-4", 3.5),
            ("sleb", 3, "0,4-5", 2.0),
        )
    ]
    assert program.best({"points": points}, 2, 2) == ["output", "taylor"]


def test_of_some_tasks(
    program: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "loss": 3.0,
        "accuracy": {"local_piqa": [0.7, 0.05], "local_boolq": [0.4, 0.05]},
        "chance": {"local_piqa": 0.5, "local_boolq": 0.5},
    }
    expected = {
        "loss": 3.0,
        "accuracy": {"local_piqa": [0.7, 0.05]},
        "chance": {"local_piqa": 0.5},
    }
    assert program.only(["local_piqa"], row) == expected
    places = ["--shared", str(folder), "--model", str(folder / "model")]
    places += ["--workdir", str(folder / "work"), "--of", "piqa"]
    monkeypatch.setattr(sys, "argv", ["real_model.py", *places, *SMALL])
    with pytest.raises(SystemExit):
        program.main()
    assert "--of piqa: not one of the tasks, tiny_choice" in capsys.readouterr().err
