"""Folders of chopjax's own that somebody else made or damaged: nothing is followed out of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint

from chopjax.checkpoint.describe import describe
from chopjax.cli import main
from chopjax.errors import UserError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    model = write_checkpoint(folder / "model", num_hidden_layers=1)
    assert main(["import", str(model), str(folder / "own")]) == 0
    return folder / "own"


@pytest.fixture
def own(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "own"))


@pytest.mark.parametrize("name", ["huggingface", "params", "chopjax_folder.json"])
def test_links_out_of_the_folder(own: Path, tmp_path: Path, name: str) -> None:
    (own / name).rename(tmp_path / name)
    (own / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match="outside the folder"):
        describe(str(own))


def test_a_link_among_the_weights(own: Path, tmp_path: Path) -> None:
    path = own / "params" / "pytree" / "_METADATA"
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    assert main(["export", str(own), str(tmp_path / "out")]) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("naming"),
        lambda record: record["naming"].update(prefix="x" * 100_000),
        lambda record: record["naming"].update(embedding_names=[]),
        lambda record: record["naming"].update(embedding_names=["../x"]),
        lambda record: record["metadata"].update(format=1),
        lambda record: record.update(dtypes={"a": "I8"}),
        lambda record: record.update(dtypes={"a": []}),
        lambda record: record.update(source=None),
        lambda record: record.update(revision=3),
        lambda record: record.update(format=99),
    ],
)
def test_a_record_that_chopjax_did_not_write(own: Path, change: Callable[[Any], object]) -> None:
    path = own / "chopjax_folder.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"chopjax_folder\.json"):
        describe(str(own))


def test_a_record_of_another_number_of_layers(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own / "huggingface" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    assert main(["inspect", str(own)]) == 2
    assert "disagree" in capsys.readouterr().err


def test_steps_are_numbers(own: Path) -> None:
    (own / "params").rename(own / "checkpoints")
    for name in ("²", "1.partial", "-3", "x"):
        (own / "checkpoints" / name).mkdir()
    with pytest.raises(UserError, match="not saved a checkpoint yet"):
        describe(str(own))
