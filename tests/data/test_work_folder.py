"""`prepare` removes and replaces only what it made itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chopjax.data import prepare as module
from chopjax.data import work_folder
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


@pytest.mark.parametrize("step", ["_is_work", "is_unfinished", "foreign_in"])
def test_work_that_another_process_ends_meanwhile(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As it takes its folder away, before this step: what is found then is what it has made."""
    store = make()
    partial = tmp_path / "tok.partial"
    work_folder.make_work_folder(partial)
    real = getattr(work_folder, step)

    def end(*arguments: Any) -> Any:
        monkeypatch.setattr(work_folder, step, real)
        shutil.rmtree(partial)
        return real(*arguments)

    monkeypatch.setattr(work_folder, step, end)
    assert make() == store
    assert getattr(work_folder, step) is real
    assert not partial.exists()


def test_folders_that_vanish_while_they_are_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "tok.partial"
    work_folder.make_work_folder(work)
    for part in ("train", "held_out"):
        (work / "store" / part).mkdir(parents=True)
        (work / "store" / part / "store.json").touch()
    (work / "notes.txt").touch()
    real = Path.is_symlink

    def is_symlink(path: Path) -> bool:
        if path.name == "store.json":  # in one of the two folders
            shutil.rmtree(work / "store", ignore_errors=True)
        return real(path)

    monkeypatch.setattr(Path, "is_symlink", is_symlink)
    assert work_folder.foreign_in(work) == ["notes.txt"]


@pytest.mark.parametrize("leftovers", [True, False])
@pytest.mark.parametrize("step", ["mark_new", "rename"])
def test_two_that_begin_at_once(
    make: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    leftovers: bool,
) -> None:
    """The other's folder appears before ours is marked or named, which can pass for a leftover."""
    partial = tmp_path / "tok.partial"
    of = Path if step == "rename" else work_folder
    real = getattr(of, step)

    def late(path: Path, *arguments: Any) -> Any:
        if path.name.startswith(".tok.partial-"):
            monkeypatch.setattr(of, step, real)
            work_folder.make_work_folder(partial)
            if leftovers:
                work_folder._remove_leftovers(partial)
                assert not path.exists()
        return real(path, *arguments)

    monkeypatch.setattr(of, step, late)
    assert (make() / "store.json").is_file()
    assert not list(tmp_path.glob(".tok*"))
    assert not partial.exists()


def test_a_name_that_somebody_else_takes_meanwhile(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name.startswith(".tok.partial-"):
            (tmp_path / "tok.partial").mkdir()
            (tmp_path / "tok.partial" / "notes.txt").write_text("precious")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match=r"tok\.partial is in the way"):
        make()
    assert (tmp_path / "tok.partial" / "notes.txt").read_text() == "precious"
    assert not list(tmp_path.glob(".tok*"))


def test_a_removal_that_is_cut_off_is_made_good(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half removed has the name of unfinished work."""

    def stop(work: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(work_folder, "empty", stop)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert not (tmp_path / "tok.partial").exists()
    assert len(list(tmp_path.glob(".tok.partial-*"))) == 1
    make()
    assert not list(tmp_path.glob(".tok*"))
