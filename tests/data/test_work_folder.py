"""`prepare` removes and replaces only what it made itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chopjax.data import prepare as module
from chopjax.data.prepare import prepare
from chopjax.data.tokenizer import Tokenizer
from chopjax.disk.mark import MARK
from chopjax.errors import UserError


@pytest.fixture
def make(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """Prepares TMP/text.txt, with the given text, to TMP/tok."""

    def run(text: str = "the lazy dog", **options: Any) -> Path:
        (tmp_path / "text.txt").write_text(text)
        prepare([tmp_path / "text.txt"], tokenizer, tmp_path / "tok", workers=1, **options)
        return tmp_path / "tok"

    return run


@pytest.mark.parametrize("name", ["notes.txt", "prepare.json", "records/00000.json", "lock"])
def test_a_folder_that_has_the_name_of_unfinished_work_stays(
    make: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    path = tmp_path / "tok.partial" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"tok\.partial is in the way"):
            make(**options)
    assert path.read_text() == "precious"
    assert not (tmp_path / "tok").exists()


def test_notes_in_a_store_are_not_deleted(make: Callable[..., Path]) -> None:
    store = make()
    (store / "notes.txt").write_text("precious")
    make()  # the same settings: nothing to do
    with pytest.raises(UserError, match=r"notes\.txt"):
        make("another text", overwrite=True)
    assert (store / "notes.txt").read_text() == "precious"
    (store / "notes.txt").unlink()
    make("another text", overwrite=True)
    assert not store.with_name("tok.partial").exists()


def test_a_store_of_an_earlier_chopjax_is_used_and_not_replaced(make: Callable[..., Path]) -> None:
    (make() / MARK).unlink()
    store = make()
    with pytest.raises(UserError, match="move it away"):
        make("another text", overwrite=True)
    assert (store / "store.json").is_file()


def test_notes_in_unfinished_work_are_not_deleted(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            make()
    note = tmp_path / "tok.partial" / "store" / "notes.txt"
    note.write_text("precious")
    with pytest.raises(UserError, match=r"store/notes\.txt"):
        make()
    note.unlink()
    make()
