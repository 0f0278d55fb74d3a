"""A folder is replaced only by the verb that made it, and only with nothing else in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chopjax.disk.atomic import new_folder
from chopjax.disk.mark import (
    MARK,
    changed,
    check_mark,
    check_own,
    foreign,
    marked_by,
    remove_marked,
)
from chopjax.errors import UserError


@pytest.fixture
def made(tmp_path: Path) -> Path:
    with new_folder(tmp_path / "out", "chop") as folder:
        (folder / "config.json").write_text("{}")
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(b"w" * 100)
    return tmp_path / "out"


def replace(folder: Path, verb: str = "chop") -> None:
    with new_folder(folder, verb, overwrite=True) as new:
        (new / "config.json").write_text("new")


def test_its_own_verb_replaces_it(made: Path) -> None:
    replace(made)
    assert (made / "config.json").read_text() == "new"
    assert not (made / "sub").exists()
    assert marked_by(made) == "chop"


@pytest.mark.parametrize("verb", ["export", "import", "analyze", "prepare"])
def test_another_verb_does_not(made: Path, verb: str) -> None:
    with pytest.raises(UserError, match="made by `chopjax chop`"):
        replace(made, verb)
    assert (made / "config.json").read_text() == "{}"


def original_model(folder: Path) -> str:
    (folder / MARK).unlink()
    return MARK


def a_note(folder: Path) -> str:
    (folder / "sub" / "notes.txt").write_text("precious")
    return "sub/notes.txt"


def an_empty_folder(folder: Path) -> str:
    (folder / "mine").mkdir()
    return "mine"


def a_link(folder: Path) -> str:
    (folder / "link").symlink_to("config.json")
    return "link"


def a_linked_folder(folder: Path) -> str:
    shutil.move(folder / "sub", folder.parent / "elsewhere")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    return "sub"


def weights_of_the_same_size(folder: Path) -> str:
    (folder / "sub" / "weights").write_bytes(b"v" * 100)
    return "sub/weights"


def a_mark_of_somebody_else(folder: Path) -> str:
    (folder / MARK).write_text("not ours")
    return MARK


FOREIGN = [
    original_model, a_note, an_empty_folder, a_link, a_linked_folder, weights_of_the_same_size,
    a_mark_of_somebody_else,
]  # fmt: skip


@pytest.mark.parametrize("put", FOREIGN)
def test_what_chopjax_did_not_write_is_named_and_stays(
    made: Path, put: Callable[[Path], str]
) -> None:
    name = put(made)
    before = sorted(path.as_posix() for path in made.parent.rglob("*"))
    with pytest.raises(UserError, match=name):
        replace(made)
    assert sorted(path.as_posix() for path in made.parent.rglob("*")) == before


def test_only_what_is_listed_is_removed(made: Path) -> None:
    a_note(made)
    remove_marked(made)
    assert [p.name for p in made.rglob("*") if p.is_file()] == [MARK, "notes.txt"]
    (made / "sub" / "notes.txt").unlink()
    remove_marked(made)
    assert not made.exists()


def test_a_mark_cannot_name_what_lies_elsewhere(made: Path) -> None:
    precious = made.parent / "precious"
    precious.write_text("years of work")
    digest = hashlib.sha256(precious.read_bytes()).hexdigest()
    record = json.loads((made / MARK).read_text())
    record["files"]["../precious"] = [precious.stat().st_size, digest]
    (made / MARK).write_text(json.dumps(record))
    replace(made)
    assert precious.read_text() == "years of work"


def test_renaming_and_reading_change_nothing(made: Path) -> None:
    moved = made.rename(made.with_name("moved"))
    assert (moved / "config.json").read_text() == "{}"
    check_own(moved, "chop")
    os.utime(moved / "config.json")
    assert foreign(moved) == []


def large(folder: Path, change: Callable[[Path], object] | None = None) -> list[str]:
    with new_folder(folder, "chop") as new:
        (new / "weights").write_bytes(bytes(range(256)) * 20_000)
    if change:
        change(folder / "weights")
    return foreign(folder)


def edit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(70_001)
        file.write(b"!")
    os.utime(path, ns=(time.time_ns() + 10**9,) * 2)  # whatever the clock's grain


def exchange(path: Path) -> None:
    """Another model's weights of the same size, older than the folder."""
    path.write_bytes(bytes(5_120_000))
    os.utime(path, ns=(0, 0))


def test_large_files_are_known_without_reading_all_of_them(tmp_path: Path) -> None:
    assert large(tmp_path / "a") == []
    assert large(tmp_path / "b", edit) == ["weights"]
    assert large(tmp_path / "c", exchange) == ["weights"]


def test_equal_folders_have_equal_marks(tmp_path: Path) -> None:
    large(tmp_path / "a")
    large(tmp_path / "b")
    assert (tmp_path / "a" / MARK).read_bytes() == (tmp_path / "b" / MARK).read_bytes()


@pytest.mark.parametrize("kind", ["folder", "marked folder", "file", "link"])
def test_hidden_names_alone_are_no_mark(tmp_path: Path, kind: str) -> None:
    """Leftovers of killed runs go; what somebody else calls so stays."""
    theirs = tmp_path / ".out.partial-1234abcd"
    if kind == "file":
        theirs.write_text("precious")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        theirs.symlink_to("elsewhere")
    elif kind == "folder":
        theirs.mkdir()
        (theirs / "config.json").write_text("precious")
    else:
        with new_folder(theirs, "chop") as folder:
            (folder / "config.json").write_text("finished")
    with new_folder(tmp_path / "out", "chop") as folder:
        (folder / "config.json").touch()
    assert os.path.lexists(theirs)
    assert kind == "link" or theirs.is_file() or (theirs / "config.json").read_text()


def test_files_that_changed_are_told(made: Path) -> None:
    assert changed(made) == []
    (made / "sub" / "weights").write_bytes(b"v" * 100)
    (made / "config.json").unlink()
    assert changed(made) == ["config.json", "sub/weights"]
    assert changed(made / "sub") == [], "no mark"


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_something_of_the_marks_name_is_not_replaced(tmp_path: Path, kind: str) -> None:
    check_mark(tmp_path)
    path = tmp_path / MARK
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=MARK):
        check_mark(tmp_path)
    with new_folder(tmp_path / "out", "chop"):
        pass
    check_mark(tmp_path / "out")
