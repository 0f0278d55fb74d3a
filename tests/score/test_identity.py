"""Answers are of a model by content: whatever changes a number starts a journal of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from chopjax.checkpoint.orbax_folder import save_import
from chopjax.score.journal import Journal
from chopjax.score.model import open_engine
from chopjax.score.run import identity


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = checkpoints.write_checkpoint(tmp_path / "m", vocab_size=300)
    (folder / "LICENSE").write_text("a licence")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return checkpoints.write_tokenizer(folder, vocab_size=300)


def of(folder: Path, **options: Any) -> Any:
    return json.loads(json.dumps(identity(*open_engine(str(folder), **options))))


def test_every_file_that_changes_a_number(tiny: Path) -> None:
    before = of(tiny)
    for path in tiny.iterdir():
        os.utime(path, ns=(1, 1))
    assert of(tiny) == before, "the times of files say nothing"
    (tiny / "LICENSE").write_text("another licence")
    (tiny / "notes.txt").write_text("not of the model")
    assert of(tiny) == before
    names = "config.json generation_config.json tokenizer_config.json tokenizer.json".split()
    for name in names:
        content = json.loads((tiny / name).read_text())
        (tiny / name).write_text(json.dumps(content, indent=7))
        after = of(tiny)
        assert after != before, name
        before = after
    (tiny / "chat_template.jinja").write_text("{{ messages[0] }}")
    assert of(tiny) != before
    assert of(tiny, max_length=64) != of(tiny)
    assert of(tiny, dtype="bfloat16") != of(tiny)
    assert len({str(of(tiny, weights=kind)) for kind in (None, "int8", "fp8")}) == 3


def test_weights_of_the_same_size_and_time(tiny: Path) -> None:
    before, stat = of(tiny), (tiny / "model.safetensors").stat()
    checkpoints.write_checkpoint(tiny, vocab_size=300, seed=1)
    os.utime(tiny / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (tiny / "model.safetensors").stat().st_size == stat.st_size
    assert of(tiny) != before


def test_an_import(tiny: Path, tmp_path: Path) -> None:
    def imported(name: str) -> Any:
        loaded, _ = open_engine(str(tiny))
        save_import(tmp_path / name, loaded, loaded.params)
        return of(tmp_path / name)

    before = imported("a")
    config = json.loads((tmp_path / "a" / "huggingface" / "config.json").read_text())
    (tmp_path / "a" / "huggingface" / "config.json").write_text(
        json.dumps(config | {"rms_norm_eps": 0.1})
    )
    assert of(tmp_path / "a") != before
    checkpoints.write_checkpoint(tiny, vocab_size=300, seed=1)
    assert imported("b") != before


def test_the_user_hears_why_answers_are_not_used(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = Journal(tmp_path / "out", of(tiny))
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    capsys.readouterr()
    new = Journal(tmp_path / "out", of(tiny))
    said = capsys.readouterr().err
    assert f"{old.path} has the answers of a run with another config.json;" in said
    assert new.path != old.path
    Journal(tmp_path / "out", of(tiny)).remove()
    assert old.path.exists()
