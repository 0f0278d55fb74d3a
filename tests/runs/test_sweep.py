"""`chopjax sweep`: the right points, in order, each done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import material

from chopjax import cli
from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import load
from chopjax.chop.measured import Measured
from chopjax.chop.surgery import chop_params
from chopjax.data.prepare import prepare
from chopjax.data.tokenizer import load_tokenizer
from chopjax.keep import parse_keep
from chopjax.models.compute import Compute
from chopjax.runs import sweep as sweep_module
from chopjax.runs.inputs import Contents, Stamps
from chopjax.runs.points import coarse_first, plan
from chopjax.runs.records import read_rows
from chopjax.runs.settings import SweepSettings
from chopjax.score.engine import Engine
from chopjax.score.perplexity import perplexity
from chopjax.train import settings as train_settings
from chopjax.train.loop import train

RECIPE = """
from chopjax.sweep_settings import default_config

def get_config():
    config = default_config()
    config.model = {model!r}
    config.text.train = config.text.held_out = {text!r}
    config.text.workers = 1
    config.strategies = "input,deepest,output,magnitude"
    config.remove = "1,2"
    config.calibration.sequences = 4
    config.calibration.sequence_length = 16
    config.heal.total_steps = 2
    config.heal.data.batch_size = 2
    config.heal.data.sequence_length = 16
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.prepare(
        tmp_path_factory.mktemp("sweep"), RECIPE, {"recipe": "sweep"}, lines=12, positions=32
    )


def run(folder: Path, *flags: str) -> int:
    work = str(folder / "work")
    return cli.main(["sweep", "--config", str(folder / "recipe.py"), "--workdir", work, *flags])


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    assert run(folder) == 0
    return read_rows(folder / "work" / "points.jsonl")


def test_points_come_coarsely_first() -> None:
    assert coarse_first([1, 2, 3, 4, 5, 6, 7]) == [4, 2, 6, 1, 3, 5, 7]
    assert coarse_first([3, 1, 3]) == [3, 1]
    assert sorted(coarse_first(range(20))) == list(range(20))


def test_every_point_has_the_loss_of_its_chopped_model(
    folder: Path, rows: list[dict[str, Any]]
) -> None:
    assert [(row["strategy"], row["remove"]) for row in rows] == [
        ("parent", 0),
        *((strategy, n) for n in (2, 1) for strategy in "input deepest output magnitude".split()),
    ]
    row = rows[1]
    chopped = load(str(folder / "model"), keep=parse_keep(row["keep"], 5))
    engine = Engine(chopped.config, chopped.params, Compute())
    texts = [json.loads(line)["text"] for line in (folder / "text.jsonl").open()]
    found = perplexity(engine, load_tokenizer(folder / "model"), texts)
    assert row["loss"] == pytest.approx(found["nats_per_token"], abs=1e-5)
    deepest, output = rows[2], rows[3]
    assert deepest["keep"] == output["keep"]
    assert deepest["loss"] == output["loss"]
    assert "report.html" in {path.name for path in (folder / "work").iterdir()}


def test_a_second_run_does_what_is_missing_and_no_more(
    folder: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "work" / "points.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    # As a kill leaves it: the last point missing, the one before half written.
    path.write_text("".join(lines[:-2]) + lines[-2][:20])
    assert run(folder) == 0
    err = capsys.readouterr().err
    assert err.count("layers 0") <= 2
    assert "parent:" not in err
    again = read_rows(path)
    assert [(r["strategy"], r["loss"]) for r in again] == [(r["strategy"], r["loss"]) for r in rows]


def test_layers_by_list_are_one_point_whatever_the_seeds(
    folder: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config.strategies=input,keep:0:3-4", "--config.remove=1,2", "--config.seeds=0,1"]
    assert run(folder, *flags, "--json") == 0
    points = json.loads(capsys.readouterr().out)["points"]
    by_list = [row for row in points if row["strategy"] == "keep:0:3-4"]
    by_name = [row for row in points if row["strategy"] == "input"]
    (row,) = by_list
    assert (row["remove"], row["keep"]) == (2, "0,3-4")
    assert [row["loss"]] == [of["loss"] for of in by_name if of["keep"] == row["keep"]]


def test_layers_by_list_heal_with_every_seed() -> None:
    settings = SweepSettings(strategies="keep:0:3-4", remove="1", healed=True, seeds="0,1")
    points = list(plan(settings, 5, {0: {}, 1: {}}, {"keep:0:3-4": {}}))[1:]
    assert [(p.keep, p.remove, p.seed, p.method.name) for p in points] == [
        ((0, 3, 4), 2, 0, ""),
        ((0, 3, 4), 2, 0, "full"),
        ((0, 3, 4), 2, 1, "full"),
    ]
    assert all(point.chop() == ("keep", {"keep": "0,3-4"}) for point in points)


def test_healed_points_are_trained_and_cleaned_up(
    folder: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config.healed=True", "--config.strategies=input", "--config.remove=2", "--json"]
    assert run(folder, *flags, "--config.draft=1", "--config.latency=True") == 0
    captured = capsys.readouterr()
    unhealed, healed = json.loads(captured.out)["points"]
    for row in (unhealed, healed):  # as a draft for the parent
        assert row["draft"]["layers"] == 3
        assert row["draft"]["accepted_length"] >= 1
        assert row["draft"]["speed_up"] > 0
        assert row["latency"]["seconds"] > 0
    assert healed["latency"] == unhealed["latency"], "one shape, one time"
    assert healed["healed"]
    assert healed["loss"] != unhealed["loss"]
    assert not list((folder / "work" / "heal").iterdir())
    assert "loading layers" not in captured.err, "the parent is in memory"


def test_healing_from_memory_is_healing_from_the_file(folder: Path, tmp_path: Path) -> None:
    """And the parent in memory is none the worse for it."""
    prepare([folder / "text.jsonl"], folder / "model", tmp_path / "tokens", workers=1)
    config = train_settings.default_config()
    with config.unlocked():
        config.model, config.chop.keep, config.total_steps = str(folder / "model"), "0,3-4", 2
        config.data.train, config.log.tensorboard = str(tmp_path / "tokens"), False
        config.data.batch_size, config.data.sequence_length = 2, 16
    parent = load(config.model).params
    before = jax.device_get(parent)
    losses = [
        train(config, tmp_path / name, params=params)["loss"]
        for name, params in {"file": None, "memory": chop_params(parent, (0, 3, 4))}.items()
    ]
    assert losses[0] == losses[1]
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(parent))


def test_fewer_strategies_do_not_measure_again_and_another_text_does(
    folder: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config.strategies=block-influence", "--config.remove=2"]
    assert run(folder, *flags) == 0
    err = capsys.readouterr().err
    assert "measuring" not in err
    assert "parent:" not in err
    text = folder / "text.jsonl"
    text.write_text(text.read_text() + json.dumps({"text": "One more line."}) + "\n")
    assert run(folder, *flags) == 0
    err = capsys.readouterr().err
    assert "measuring" in err
    assert "parent:" in err, "what was scored on other text is scored again"


def test_a_killed_analysis_goes_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["sweep", "--config", str(folder / "recipe.py"), "--config.remove=3", "--workdir"]
    wanted = "--config.strategies=magnitude,sleb"
    assert cli.main([*words, str(tmp_path / "whole"), wanted]) == 0
    keep, rounds = Measured.keep, 0

    def keep_two_rounds(known: Measured, name: str, value: Any) -> None:
        nonlocal rounds
        keep(known, name, value)
        rounds += name == "SLEB"
        if rounds == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Measured, "keep", keep_two_rounds)
        assert cli.main([*words, str(tmp_path / "killed"), wanted]) == 130
    capsys.readouterr()
    assert cli.main([*words, str(tmp_path / "killed"), wanted]) == 0
    said = capsys.readouterr().err
    assert "measured before: similarity, whole model, SLEB" in said
    whole, killed = (
        json.loads((tmp_path / name / "analysis-0/analysis.json").read_text())
        for name in ("whole", "killed")
    )
    assert killed["measures"]["distance"] == whole["measures"]["distance"]
    for found, expected in zip(killed["measures"]["sleb"], whole["measures"]["sleb"], strict=True):
        assert found["layer"] == expected["layer"]
        assert found["candidates"] == pytest.approx(expected["candidates"])


def test_a_deeper_search_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "--config", str(folder / "recipe.py"), "--config.strategies=sleb"]

    def rounds(workdir: str, remove: str) -> list[dict[str, Any]]:
        work = [f"--config.remove={remove}", "--workdir", str(tmp_path / workdir)]
        assert cli.main([*words, *work]) == 0
        found = json.loads((tmp_path / workdir / "analysis-0/analysis.json").read_text())
        return found["measures"]["sleb"]

    (one,) = rounds("work", "1,4")  # no deeper than is chopped: four cannot go, with two protected
    capsys.readouterr()
    three = rounds("work", "1,3,4")
    assert "measured before: whole model, SLEB" in capsys.readouterr().err
    assert [three[0], len(three)] == [one, 3]
    assert rounds("work", "2") == three, "what serves is not measured again"
    assert "SLEB" not in capsys.readouterr().err
    kept = json.loads((tmp_path / "work/analysis-0/measured.json").read_text())
    assert kept["asked"]["model"] == Contents().model(describe(str(folder / "model")))
    at_once = rounds("other", "3")
    assert [each["layer"] for each in three] == [each["layer"] for each in at_once]


def test_points_and_measures_of_an_earlier_chopjax_are_taken(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are recorded under sizes and times of files, not under their content."""
    words = ["sweep", "--config", str(folder / "recipe.py"), "--workdir", str(tmp_path / "work")]
    words += ["--config.strategies=magnitude", "--config.remove=2", "--json"]
    with monkeypatch.context() as earlier:
        earlier.setattr(sweep_module, "WAYS", (Stamps(),))
        assert cli.main(words) == 0
    before = json.loads(capsys.readouterr().out)
    assert cli.main(words) == 0
    after = capsys.readouterr()
    assert "layers" not in after.err, "nothing is measured or scored again"
    assert json.loads(after.out) == before


@pytest.mark.parametrize(
    "name",
    [
        "tokens/mine",
        "heal/mine",
        "analysis-0/mine",
        "points.jsonl",
        "report.html",
        "loss.png",
        ".chopjax.json",
        ".lock",
    ],
)
def test_what_others_made_is_named_and_stays(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    words = ["sweep", "--config", str(folder / "recipe.py"), "--workdir", str(tmp_path)]
    assert cli.main(words) == 2
    assert name.partition("/")[0] in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {name.partition("/")[0]}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.strategies=input,guess", "'guess' is not one of"),
        ("--config.text.held_out=", "text.held_out"),
        ("--config.seeds=x", "seeds"),
        ("--config.draft=-1", "draft is -1: not below 0"),
        ("--config.remove=9", "from 1 to 4"),
        ("--config.strategies=keep:0:9", "there is no layer 9"),
    ],
)
def test_mistakes_are_said(
    folder: Path, tmp_path: Path, flag: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "--config", str(folder / "recipe.py"), "--workdir", str(tmp_path / "work")]
    assert cli.main([*words, flag]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists(), "before anything is read or begun"


def test_nothing_to_remove_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--config.strategies=input", "--config.remove=4") == 2
    assert "none of input can remove 4 of 5 layers" in capsys.readouterr().err


def test_texts_and_tasks_are_found_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--workdir", str(tmp_path / "work"), "--config", str(folder / "recipe.py")]
    for flags, said in (
        (["--config.score.suite=none"], "'none' is not one of"),
        (["--config.score.text=nowhere.txt"], "nowhere.txt: no such file"),
        (["--config.score.suite=quick", f"--config.score.data_dir={tmp_path}"], "are missing"),
    ):
        assert cli.main(["sweep", *work, *flags]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "work").exists()
    few = ["--config.strategies=input", "--config.remove=1", "--json"]
    text = f"--config.score.text={folder / 'text.jsonl'}"
    assert cli.main(["sweep", *work, *few, text]) == 0
    report = json.loads(capsys.readouterr().out)
    for row in (report["parent"], *report["points"]):
        # The same text as held-out text: the same figure.
        assert row["texts"]["text.jsonl"]["nats_per_token"] == pytest.approx(row["loss"], abs=1e-6)
