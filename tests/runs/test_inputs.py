"""Inputs are told apart by their content; names and times do not count."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from chopjax.checkpoint.describe import describe
from chopjax.runs.inputs import Contents, Stamps


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.write_checkpoint(tmp_path_factory.mktemp("inputs") / "model")
    return checkpoints.write_tokenizer(folder)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "copy")


def of_model(folder: Path) -> dict[str, Any]:
    return Contents().model(describe(str(folder)))


def test_a_touched_or_copied_model_is_the_same(model: Path, copy: Path) -> None:
    before = of_model(model)
    for path in copy.iterdir():
        os.utime(path, ns=(1, 1))
    assert of_model(copy) == before
    (copy / "README.md").write_text("changes no number")
    assert of_model(copy) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_any_file_that_changes_a_number_counts(copy: Path, name: str) -> None:
    """Also where size and time stay as they were."""
    before, stat = of_model(copy), (copy / name).stat()
    content = bytearray((copy / name).read_bytes())
    place = content.rindex(b"a") if name.endswith(".json") else len(content) - 2
    content[place] ^= 4
    described = describe(str(copy))
    (copy / name).write_bytes(content)
    os.utime(copy / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Contents().model(described) != before


def test_texts_by_content_name_and_field(tmp_path: Path) -> None:
    text = tmp_path / "a.jsonl"
    text.write_text(json.dumps({"text": "one"}) + "\n")

    def found(field: str = "text", path: Path = text) -> list[Any]:
        return Contents().texts(str(path), field)

    before = found()
    os.utime(text, ns=(1, 1))
    assert found() == before
    (tmp_path / "elsewhere").mkdir()
    assert found(path=Path(shutil.copy(text, tmp_path / "elsewhere"))) == before
    assert found("body") != before
    text.write_text(json.dumps({"text": "two"}) + "\n")
    assert found() != before


def test_stamps_are_what_an_earlier_chopjax_recorded(copy: Path) -> None:
    stamps = Stamps().model(describe(str(copy)))
    stat = (copy / "config.json").stat()
    assert stamps["parent"] == str(copy.resolve())
    assert stamps["files"]["config.json"] == [stat.st_size, stat.st_mtime_ns]
