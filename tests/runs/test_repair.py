"""`chopjax run` and `chopjax sweep` with a repair between chop and healing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import material

from chopjax import cli
from chopjax.checkpoint.load import load
from chopjax.checkpoint.provenance import read_provenance
from chopjax.runs.records import read_rows

RUN = """
from chopjax.{verb}_settings import default_config


def get_config():
    config = default_config()
    config.model = {model!r}
    config.text.train = config.text.held_out = {text!r}
    config.text.workers = 1
    config.calibration.sequences = 6
    config.calibration.sequence_length = 32
    config.heal.total_steps = 2
    config.heal.data.batch_size = 2
    config.heal.data.sequence_length = 16
    config.heal.log.tensorboard = False
    config.score.latency_length = 16
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.prepare(
        tmp_path_factory.mktemp("repair"), RUN, {"run": "pipeline", "sweep": "sweep"}
    )


def start(folder: Path, verb: str, *flags: str) -> int:
    recipe, work = str(folder / f"{verb}.py"), str(folder / f"work-{verb}")
    return cli.main([verb, "--config", recipe, "--workdir", work, *flags])


def test_a_run_repairs_every_round_and_says_what_it_gained(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config.chop.keep=0,3-4", "--config.chop.repair=linear", "--schedule=2x1"]
    assert start(folder, "run", *flags, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["rounds"]) == 2
    for each in report["rounds"]:
        assert each["repair"]["kind"] == "linear"
        assert each["repair"]["sequences"] == 6
    work = folder / "work-run"
    assert "repaired without training (linear" in (work / "report.html").read_text()
    record = read_provenance(work / "healed")
    assert record is not None
    steps = [step for step in record["history"] if step["step"] == "chop"]
    assert [len(step["settings"]["repair"]["folded"]) for step in steps] == [1, 1]
    # Nothing again, and with another ridge the chop and what follows.
    assert start(folder, "run", *flags) == 0
    assert "again, because" not in capsys.readouterr().err
    assert start(folder, "run", *flags, "--config.chop.ridge=1.0") == 0
    assert "ridge was 0.1, is 1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--config.chop.repair=liner"], "chop.repair: 'liner' is not one of"),
        (["--config.chop.repair=linear", "--config.chop.ridge=-1.0"], "chop.ridge is -1.0"),
        (
            ["--config.chop.repair=linear", "--config.chop.after_steps=2"],
            "chop.after_steps and chop.repair: give one",
        ),
        (
            ["--config.chop.repair=linear", "--config.chop.keep=2-4"],
            "layers 0-1 have no kept layer before them",
        ),
    ],
)
def test_a_run_that_cannot_repair_does_not_begin(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str],
    complaint: str,
) -> None:  # fmt: skip
    recipe = str(folder / "run.py")
    assert cli.main(["run", "--config", recipe, "--workdir", str(tmp_path / "w"), *flags]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_sweep_has_curves_of_chopped_repaired_and_healed_from_each(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--config.strategies=input", "--config.remove=2", "--config.repair=affine",
        "--config.healed=True", "--config.ridge=0.01",
    ]  # fmt: skip
    assert start(folder, "sweep", *flags, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    states = {(row["healed"], row["repaired"]): row for row in report["points"]}
    assert set(states) == {(False, False), (False, True), (True, False), (True, True)}
    assert len({row["loss"] for row in report["points"]}) == 4
    work = folder / "work-sweep"
    page = (work / "report.html").read_text()
    assert "2 of 5 removed, repaired" in page
    assert "folded into what stayed, without training (affine, ridge 0.01)" in page
    for name in ("repaired", "heal"):
        assert not list((work / name).iterdir())
    # The repaired point is `chop --repair`, scored.
    out = folder / "chopped"
    few = ["--sequences", "6", "--sequence-length", "32", "--data", str(folder / "text.jsonl")]
    how = ["--strategy", "input", "--remove", "2", "--repair", "affine", "--ridge", "0.01"]
    assert cli.main(["chop", str(folder / "model"), str(out), *how, *few]) == 0
    capsys.readouterr()
    text = ["--data", str(folder / "text.jsonl"), "--json"]
    assert cli.main(["perplexity", str(out), *text]) == 0
    loss = json.loads(capsys.readouterr().out)["nats_per_token"]
    assert states[False, True]["loss"] == pytest.approx(loss, abs=1e-5)
    # Nothing twice, and what needs no repair is not done again for another ridge.
    before = read_rows(work / "points.jsonl")
    assert start(folder, "sweep", *flags) == 0
    assert read_rows(work / "points.jsonl") == before
    capsys.readouterr()
    assert start(folder, "sweep", *flags[:3]) == 0
    again = read_rows(work / "points.jsonl")[len(before) :]
    assert [(row["healed"], row["repaired"]) for row in again] == [(False, True)]


def test_what_kept_adapters_stand_on_stays_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    flags = [
        "strategies=input,narrow:mlp=0.5,int8", "remove=2", "repair=linear", "keep_healed=True",
        "methods=repair,repair+lora,repair+full,lora,full", "heal.adapter.rank=2",
    ]  # fmt: skip
    recipe, work = str(folder / "sweep.py"), tmp_path / "work"
    given = [f"--config.{flag}" for flag in flags]
    assert cli.main(["sweep", "--config", recipe, "--workdir", str(work), *given]) == 0
    rows = [row for row in read_rows(work / "points.jsonl") if row["healed"]]
    assert len(rows) == 6
    runs = {row["key"]: load(str(work / "heal" / row["key"])) for row in rows}
    assert {path.name for path in (work / "heal").iterdir()} == set(runs)
    (adapted,) = [row["key"] for row in rows if row["method"] == "repair+lora"]
    assert [path.name for path in (work / "repaired").iterdir()] == [adapted]
    assert [path.name for path in (work / "made").glob("*/*")] == ["1-narrow"]


def test_a_sweep_whose_points_have_no_layer_to_fold_into_leaves_them_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, work = str(folder / "sweep.py"), str(tmp_path / "work")
    flags = ["--config.strategies=magnitude,first", "--config.protect=0,1", "--config.remove=4"]
    command = ["sweep", "--config", recipe, "--workdir", work, *flags, "--config.repair=linear"]
    assert cli.main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    points: list[dict[str, Any]] = json.loads(captured.out)["points"]
    assert [(row["strategy"], row["repaired"]) for row in points] == [
        ("magnitude", False),
        ("first", False),
        ("first", True),
    ]
    assert "left out: --repair linear" in captured.err
