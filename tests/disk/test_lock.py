"""One at a time, told by name."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest

from chopjax.disk.lock import ATTEMPTS, locked, locked_in
from chopjax.errors import UserError


def test_one_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with (
        locked(file, "first"),
        pytest.raises(UserError, match="busy with it"),
        locked(file, "busy with it"),
    ):
        raise AssertionError("entered")
    with locked(file, "free again"):
        pass


@pytest.mark.parametrize("made_again", [True, False])
def test_a_lock_on_a_file_that_is_gone_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    """Who held it before has removed its folder, and a third process may have made another one."""
    file, real = tmp_path / "work" / "lock", fcntl.flock
    file.parent.mkdir()

    def flock(*arguments: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        shutil.rmtree(file.parent)
        if made_again:
            file.parent.mkdir()
            file.touch()
        real(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FileNotFoundError), locked(file, "busy"):
        raise AssertionError("entered")
    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        locked_in(lambda: file.parent.mkdir(exist_ok=True), file, "busy"),
        pytest.raises(UserError, match="busy with it"),
        locked(file, "busy with it"),
    ):
        raise AssertionError("entered")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    tries: list[int] = []
    with (
        pytest.raises(FileNotFoundError, match="lock"),
        locked_in(lambda: tries.append(0), tmp_path / "work" / "lock", "busy"),
    ):
        raise AssertionError("entered")
    assert len(tries) == ATTEMPTS
