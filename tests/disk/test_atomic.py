"""Folders that are there whole or not at all, also when the process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chopjax.disk.atomic import check_free, new_file, new_folder
from chopjax.errors import UserError


def fill(folder: Path, text: str = "new") -> None:
    (folder / "config.json").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "weights").write_bytes(b"w" * 1000)


def fail(out: Path, error: type[BaseException], overwrite: bool = False) -> None:
    with new_folder(out, "chop", overwrite) as folder:
        fill(folder)
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with new_folder(tmp_path / "out", "chop") as folder:
        (folder / "config.json").write_text("old")
    return tmp_path / "out"


def test_appears_whole_with_its_parents(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with new_folder(out, "chop") as folder:
        fill(folder)
        assert not out.exists()
    assert names(out) == [".chopjax.json", "config.json", "sub"]
    assert names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, UserError])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail(tmp_path / "a" / "out", error)
    assert not names(tmp_path)


def test_what_stood_there_survives_an_exception(old: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail(old, KeyboardInterrupt, overwrite=True)
    assert names(old.parent) == ["out"]
    assert (old / "config.json").read_text() == "old"


def test_existing_folders_are_not_touched(old: Path) -> None:
    with pytest.raises(UserError, match="--overwrite"), new_folder(old, "chop"):
        raise AssertionError("entered")
    assert names(old.parent) == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", "chop") as folder:
        fill(folder)
    assert names(tmp_path / "out") == [".chopjax.json", "config.json", "sub"]


def test_overwrite_replaces(old: Path) -> None:
    with new_folder(old, "chop", overwrite=True) as folder:
        fill(folder)
        assert (old / "config.json").read_text() == "old"
    assert (old / "config.json").read_text() == "new"
    assert names(old.parent) == ["out"]


def test_overwrite_deletes_only_its_own_kind(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"no \.chopjax\.json"):
        check_free(tmp_path / "out", "chop", overwrite=True)
    with pytest.raises(UserError, match="not a folder"):
        check_free(tmp_path / "out" / "thesis.tex", "chop", overwrite=True)


@pytest.mark.parametrize("below", [".", "sub/model"])
def test_overwrite_never_deletes_the_input(old: Path, below: str) -> None:
    model = old / below
    model.mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="would delete"):
        check_free(old, "chop", overwrite=True, protect=(model,))


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_the_current_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not even an empty one: shells that stand in it would stand nowhere."""
    (tmp_path / "out" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / ("sub" if name == ".." else "."))
    for overwrite in (False, True):
        with pytest.raises(UserError, match="the current folder"):
            check_free(Path(name), "chop", overwrite)


def test_a_link_is_not_replaced(old: Path) -> None:
    link = old.with_name("link")
    link.symlink_to(old)
    with pytest.raises(UserError, match="not a folder"):
        check_free(link, "chop", overwrite=True)
    link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(UserError, match="not a folder"):
        check_free(link, "chop")


def test_written_by_somebody_else_meanwhile(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "out", "chop") as folder:
            fill(folder)
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    with pytest.raises(UserError, match="exists"):
        write()
    assert names(tmp_path / "out") == ["theirs"]
    assert names(tmp_path) == ["out"]


def test_forbidden_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(UserError, match=str(out.parent)), new_folder(out, "chop"):
            raise AssertionError("entered")


WRITER = """
import sys, time
from pathlib import Path
from chopjax.disk.atomic import new_folder
with new_folder(Path(sys.argv[1]), "chop") as folder:
    (folder / "half").write_bytes(b"x" * 100)
    print("writing", flush=True)
    time.sleep(60)
"""


def _start_writer(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "writing\n"
    return process


def test_killed_run_leaves_no_final_name_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "out[1]"
    process = _start_writer(out)
    process.kill()
    process.wait()
    assert not out.exists()
    assert len(names(tmp_path)) == 1
    with new_folder(out, "chop") as folder:
        fill(folder)
    assert names(tmp_path) == ["out[1]"]


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = _start_writer(tmp_path / "out")
    process.send_signal(signal.SIGINT)
    process.wait()
    assert not names(tmp_path)


def test_two_at_once_do_not_take_each_others_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start_writer(out)
    try:
        with new_folder(out, "chop") as folder:
            fill(folder)
        assert len(names(tmp_path)) == 2  # the other's is still there
    finally:
        process.kill()
        process.wait()


FULL = """
import resource, sys
from pathlib import Path
from chopjax.disk.atomic import new_folder
from chopjax.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with new_folder(Path(sys.argv[1]), "chop") as folder:
        (folder / "large").write_bytes(bytes(20_000))
except UserError as error:
    print(error)
"""


def test_no_room(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large; nothing was written" in found.stdout
    assert not names(tmp_path)


def test_new_file(tmp_path: Path) -> None:
    final = tmp_path / "a" / "report.json"
    with new_file(final) as path:
        path.write_text("1")
        assert not final.exists()
    with pytest.raises(UserError, match="exists"), new_file(final) as path:
        raise AssertionError("entered")

    def fail_half_way() -> None:
        with new_file(final, overwrite=True) as path:
            path.write_text("2")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert final.read_text() == "1"
    with new_file(final, overwrite=True) as path:
        path.write_text("3")
    assert final.read_text() == "3"
    assert names(final.parent) == ["report.json"]
    with pytest.raises(UserError, match="is a folder"), new_file(tmp_path):
        raise AssertionError("entered")


@pytest.mark.parametrize("make", [new_folder, new_file])
def test_a_url_is_not_taken_for_a_folder(make: Callable[..., Any]) -> None:
    more = ("chop",) if make is new_folder else ()
    with pytest.raises(UserError, match="URL"), make(Path("gs://bucket/model"), *more):
        pass
