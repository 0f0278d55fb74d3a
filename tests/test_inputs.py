"""Inputs are told apart by their content; times only save reading them again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from chopjax import inputs
from chopjax.checkpoint.describe import describe
from chopjax.inputs import Contents, Hashes, Stamps


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.write_checkpoint(tmp_path_factory.mktemp("inputs") / "model")
    return checkpoints.write_tokenizer(folder)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "copy")


def of_model(folder: Path, tmp_path: Path) -> dict[str, Any]:
    return Contents(tmp_path / "hashes").model(describe(str(folder)))


def test_a_touched_or_copied_model_is_the_same(model: Path, copy: Path, tmp_path: Path) -> None:
    before = of_model(model, tmp_path)
    for path in copy.iterdir():
        os.utime(path, ns=(1, 1))
    assert of_model(copy, tmp_path) == before
    (copy / "README.md").write_text("changes no number")
    assert of_model(copy, tmp_path) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_any_file_that_changes_a_number_counts(copy: Path, tmp_path: Path, name: str) -> None:
    """Also where size and time stay as they were."""
    before, stat = of_model(copy, tmp_path), (copy / name).stat()
    content = bytearray((copy / name).read_bytes())
    place = content.rindex(b"a") if name.endswith(".json") else len(content) - 2
    content[place] ^= 4
    described = describe(str(copy))
    (copy / name).write_bytes(content)
    os.utime(copy / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Contents(tmp_path / "hashes").model(described) != before


def test_texts_by_content_name_and_field(tmp_path: Path) -> None:
    text = tmp_path / "a.jsonl"
    text.write_text(json.dumps({"text": "one"}) + "\n")

    def found(field: str = "text", path: Path = text) -> list[Any]:
        return Contents(tmp_path / "hashes").texts(str(path), field)

    before = found()
    os.utime(text, ns=(1, 1))
    assert found() == before
    (tmp_path / "elsewhere").mkdir()
    assert found(path=Path(shutil.copy(text, tmp_path / "elsewhere"))) == before
    assert found("body") != before
    text.write_text(json.dumps({"text": "two"}) + "\n")
    assert found() != before


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "file", tmp_path / "cache"
    file.write_text("one")
    monkeypatch.setattr(inputs, "_GRAIN_NS", -(10**12))
    read: list[Path] = []
    entry = inputs._entry
    monkeypatch.setattr(inputs, "_entry", lambda path: read.append(path) or entry(path))
    one = Hashes(cache).of([file])
    assert Hashes(cache).of([file]) == one
    assert len(read) == 1
    os.utime(file)
    assert Hashes(cache).of([file]) == one
    assert len(read) == 2


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    """Within the clock's grain another change would bear the same time."""
    file = tmp_path / "file"
    file.write_text("one")
    Hashes(tmp_path / "cache").of([file])
    assert json.loads((tmp_path / "cache").read_text())["sha256"] == {}


@pytest.mark.parametrize("content", ["precious", "[]", "{}", '{"format": 9}'])
def test_a_cache_that_is_somebody_elses_stays(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text("one")
    (tmp_path / "cache").write_text(content)
    assert len(Hashes(tmp_path / "cache").of([tmp_path / "file"])[0]) == 64
    assert (tmp_path / "cache").read_text() == content


def test_stamps_are_what_an_earlier_chopjax_recorded(copy: Path) -> None:
    stamps = Stamps().model(describe(str(copy)))
    stat = (copy / "config.json").stat()
    assert stamps["parent"] == str(copy.resolve())
    assert stamps["files"]["config.json"] == [stat.st_size, stat.st_mtime_ns]
