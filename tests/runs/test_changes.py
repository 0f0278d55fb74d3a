"""`chopjax sweep` with strategies that are more than a chop, beside the verbs by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import material

from chopjax import cli
from chopjax.checkpoint.load import load
from chopjax.runs import changes, point_runs
from chopjax.runs.points import Point, strategies_of
from chopjax.runs.records import read_rows
from chopjax.runs.settings import methods_of, read_sweep
from chopjax.train.config_file import load_config

RECIPE = """
from chopjax.sweep_settings import default_config

def get_config():
    config = default_config()
    config.model = {model!r}
    config.text.train = config.text.held_out = {text!r}
    config.text.workers = 1
    config.strategies = "wanda:2:4,narrow:mlp=0.5,keep:0:3-4+int8"
    config.remove = "1"
    config.healed = True
    config.calibration.sequences = 4
    config.calibration.sequence_length = 16
    config.heal.total_steps = 2
    config.heal.data.batch_size = 2
    config.heal.data.sequence_length = 16
    config.heal.log.tensorboard = False
    return config
"""
LOOK = ["--sequences", "4", "--sequence-length", "16", "--data"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.prepare(
        tmp_path_factory.mktemp("changes"), RECIPE, {"recipe": "sweep"}, lines=12, positions=32
    )


def run(folder: Path, *flags: str) -> int:
    work = str(folder / "work")
    return cli.main(["sweep", "--config", str(folder / "recipe.py"), "--workdir", work, *flags])


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    assert run(folder) == 0
    report: dict[str, Any] = json.loads((folder / "work" / "report.json").read_text())
    return report


def rows_of(report: dict[str, Any]) -> dict[tuple[str, bool], dict[str, Any]]:
    return {(row["strategy"], row["healed"]): row for row in report["points"]}


def loss_of(capsys: pytest.CaptureFixture[str], model: Path, text: Path) -> float:
    capsys.readouterr()
    assert cli.main(["perplexity", str(model), "--data", str(text), "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["nats_per_token"])


def test_a_point_is_what_its_verbs_make(
    folder: Path, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = str(folder / "model"), folder / "text.jsonl"
    verbs = {
        "wanda:2:4": [["sparsify", "--method", "wanda", "--pattern", "2:4", *LOOK, str(text)]],
        "narrow:mlp=0.5": [
            ["narrow", "--mlp", "0.5", "--method", "activation", *LOOK, str(text)]
        ],
        "keep:0:3-4+int8": [["chop", "--keep", "0,3-4"],
                         ["quantize", "--weights", "int8"]],
    }  # fmt: skip
    rows = rows_of(report)
    for strategy, steps in verbs.items():
        start, row = model, rows[strategy, False]
        for number, (verb, *flags) in enumerate(steps):
            out = str(tmp_path / f"{strategy.replace(':', '-')}-{number}")
            assert cli.main([verb, start, out, *flags]) == 0
            start = out
        assert row["loss"] == pytest.approx(loss_of(capsys, Path(start), text), abs=1e-5)
        assert row["remove"] == (2 if "keep" in strategy else 0)


def test_zeros_stay_in_healing_and_quantized_weights_are_not_trained(
    folder: Path, report: dict[str, Any]
) -> None:
    rows, parent = rows_of(report), report["parent"]
    assert set(rows) == {
        ("wanda:2:4", False), ("narrow:mlp=0.5", False), ("keep:0:3-4+int8", False),
        ("wanda:2:4", True), ("narrow:mlp=0.5", True),
    }  # fmt: skip
    assert rows["wanda:2:4", True]["loss"] != rows["wanda:2:4", False]["loss"]
    sparse, narrow, bits = (
        rows[s, False] for s in ("wanda:2:4", "narrow:mlp=0.5", "keep:0:3-4+int8")
    )
    assert sparse["not_zero"] < sparse["parameters"] == parent["parameters"]
    assert sparse["bytes"] == parent["bytes"]
    assert narrow["parameters"] < parent["parameters"]
    assert bits["bytes"] < rows["narrow:mlp=0.5", False]["bytes"]
    page = (folder / "work" / "report.html").read_text()
    assert "Weights in int8 are not trained." in page


def test_what_has_all_layers_is_not_chopped_to_heal_and_its_teacher_is_the_parent(
    folder: Path,
) -> None:
    flags = ["healed=False", "methods=distill", "strategies=wanda:2:4"]
    settings = read_sweep(load_config(folder / "recipe.py", flags))
    (strategy,), (method,) = strategies_of(settings), methods_of(settings)
    point = Point(strategy.name, 0, tuple(range(5)), 0, method, strategy.changes)
    config = point_runs.config_of(settings, folder / "work", point, 1)
    assert (config.model, config.chop.keep) == (settings.model, "")
    assert (config.teacher.model, config.teacher.map) == (settings.model, "0-4")
    assert config.masks == "fixed"


def test_nothing_that_was_made_is_left_and_nothing_is_made_again(
    folder: Path, report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made = folder / "work" / changes.FOLDER
    assert not list(made.iterdir())
    # As a kill leaves it: the last point, the healed narrow one, is missing.
    points = folder / "work" / "points.jsonl"
    lines = points.read_text().splitlines(keepends=True)
    points.write_text("".join(lines[:-1]))
    capsys.readouterr()
    assert run(folder) == 0
    said = capsys.readouterr().err
    assert "sparsify" not in said
    assert "wanda:2:4: layers" not in said
    (last,) = read_rows(points)[-1:]
    assert (last["strategy"], last["loss"]) == ("narrow:mlp=0.5", json.loads(lines[-1])["loss"])
    assert not list(made.iterdir())


@pytest.mark.thorough
def test_columns_go_while_a_point_is_trained(folder: Path, tmp_path: Path) -> None:
    """Of what is narrower, too, and of chops; without training there is no such point."""
    flags = ["strategies=dimchop:0.5,narrow:mlp=0.5+dimchop:0.25,input:2+dimchop:0.5"]
    flags += ["keep_healed=True", "heal.dimchop.interval=1"]
    work, recipe = str(tmp_path / "work"), str(folder / "recipe.py")
    words = ["sweep", "--config", recipe, "--workdir", work]
    assert cli.main([*words, *(f"--config.{flag}" for flag in flags)]) == 0
    report = json.loads((tmp_path / "work" / "report.json").read_text())
    assert all(row["healed"] for row in report["points"])
    names = ("dimchop:0.5", "narrow:mlp=0.5+dimchop:0.25", "input:2+dimchop:0.5")
    whole, narrow, chop = (rows_of(report)[name, True] for name in names)
    assert (whole["remove"], narrow["remove"], chop["remove"]) == (0, 0, 2)
    for row, share in ((whole, 0.5), (narrow, 0.25), (chop, 0.5)):
        params = load(str(tmp_path / "work" / "heal" / row["key"])).params
        blocks = jax.tree.leaves_with_path(params["blocks"])
        matrices = {
            jax.tree_util.keystr(path): np.asarray(value)
            for path, value in blocks
            if not re.search("norm|bias", jax.tree_util.keystr(path))
        }
        assert len(matrices) == 7
        zeros = {name: float((value == 0).mean()) for name, value in matrices.items()}
        assert zeros == dict.fromkeys(zeros, share)
        everything = sum(int(np.count_nonzero(value)) for value in jax.tree.leaves(params))
        assert row["not_zero"] == everything < row["parameters"]


def test_what_follows_codes_is_made_of_their_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind int8 in a strategy, and of a parent that is in int8."""
    model, text, codes = str(folder / "model"), folder / "text.jsonl", str(tmp_path / "codes")
    assert cli.main(["quantize", model, codes, "--weights", "int8"]) == 0
    zeros = ["--method", "magnitude", "--pattern", "2:4"]
    assert cli.main(["sparsify", codes, str(tmp_path / "sparse"), *zeros]) == 0
    loss = loss_of(capsys, tmp_path / "sparse", text)
    behind = "int8+magnitude:2:4,int8+magnitude:2:4+int8,int8+dimchop:0.5"
    for parent, names in ((model, behind), (codes, "input:2,magnitude:2:4")):
        work = tmp_path / f"work-{Path(parent).name}"
        flags = [f"strategies={names}", f"model={parent}", "heal.dimchop.interval=1"]
        words = ["sweep", "--config", str(folder / "recipe.py"), "--workdir", str(work)]
        assert cli.main([*words, *(f"--config.{flag}" for flag in flags)]) == 0
        report = json.loads((work / "report.json").read_text())
        rows = rows_of(report)
        if parent == model:
            assert set(rows) == {
                ("int8+magnitude:2:4", False), ("int8+magnitude:2:4", True),
                ("int8+magnitude:2:4+int8", False), ("int8+dimchop:0.5", True),
            }  # fmt: skip
            sparse = rows["int8+magnitude:2:4", False]
            again = rows["int8+magnitude:2:4+int8", False]
            assert (sparse.get("weights"), again["weights"]) == (None, "int8")
            assert again["bytes"] < sparse["bytes"] == report["parent"]["bytes"]
        else:
            assert set(rows) == {
                (name, healed) for name in names.split(",") for healed in (False, True)
            }
            sparse = rows["magnitude:2:4", False]
            assert sparse["bytes"] == report["parent"]["bytes"] > rows["input:2", False]["bytes"]
        assert sparse["loss"] == pytest.approx(loss, abs=1e-5)


def test_when_columns_go(folder: Path) -> None:
    """All of them half-way, unless it is said, at a step at which columns are chosen; held-out text
    is measured at such steps, too. Other points have nothing of it."""

    def config(strategy: str, *more: str) -> Any:
        flags = ["healed=False", "methods=full", f"strategies={strategy}", *more]
        settings = read_sweep(load_config(folder / "recipe.py", flags))
        (found,), (method,) = strategies_of(settings), methods_of(settings)
        point = Point(found.name, 0, tuple(range(5)), 0, method, found.changes)
        return point_runs.config_of(settings, folder / "work", point, 57)

    masked = config("dimchop:0.5")
    assert (masked.dimchop.final, masked.dimchop.end, masked.dimchop.interval) == (0.5, 30, 10)
    assert masked.evaluation.every == 10
    asked = "heal.dimchop.end=40", "heal.dimchop.interval=20"
    assert config("dimchop:0.5", *asked).dimchop.end == 40
    plain = config("wanda:2:4", *asked)
    assert (plain.dimchop.final, plain.dimchop.end, plain.evaluation.every) == (0, 0, 5)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--config.strategies=input,wanda"], "strategies: 'wanda': "),
        (["--config.strategies=narrow:heads=0.3"], "strategies: narrow:heads=0.3: --heads 0.3"),
        (["--config.strategies=input:9+int8"], "from 1 to 4"),
        (["--config.strategies=int4+wanda:2:4+int4+int8"], "'int4+wanda:2:4+int4+int8': weights"),
        (
            ["--config.strategies=input,dimchop:0.5", "--config.healed=False"],
            "dimchop:0.5: columns go in training; give healed=True or methods",
        ),
        (
            ["--config.strategies=dimchop:0.5", "--config.heal.dimchop.interval=0"],
            "interval is 0: at least 1",
        ),
        (
            ["--config.strategies=wanda:2:4", "--config.methods=qlora",
             "--config.heal.adapter.rank=2", "--config.healed=False"],
            "masks",
        ),
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused_before_anything_is_made(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    complaint: str,
) -> None:
    words = ["sweep", "--config", str(folder / "recipe.py"), "--workdir", str(tmp_path / "work")]
    assert cli.main([*words, *flags]) == 2
    assert complaint in capsys.readouterr().err
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert set(left) <= {".chopjax.json", ".lock"}
