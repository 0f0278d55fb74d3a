"""The folder of a run or a sweep: whose it is, and whether what will be written fits."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from chopjax.disk.mark import marked_by
from chopjax.errors import UserError
from chopjax.runs.workdir import check_space, opened

Usage = namedtuple("Usage", "total used free")


def test_models_and_tokens_are_counted_without_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"word " * 200)
    workdir = tmp_path / "work"
    workdir.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, 5000))
    with pytest.raises(UserError, match=r"about 5,001 bytes .* 0 are there .* 5,000 are free"):
        check_space(workdir, [], "text", 5001)
    with pytest.raises(UserError, match=r"about 5,500 bytes will be written"):
        check_space(workdir, [str(text)], "text", 5000)
    (workdir / "there").write_bytes(bytes(500))
    check_space(workdir, [str(text)], "text", 5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 0))
    check_space(workdir, [str(text)], "text", 10**12)  # a file system that does not say


def test_a_folder_is_marked_once_and_is_one_verbs(tmp_path: Path) -> None:
    looked_at: list[Path] = []
    for _ in range(2):
        with opened(tmp_path / "work", "sweep", looked_at.append):
            assert marked_by(tmp_path / "work") == "sweep"
    assert looked_at == [tmp_path / "work"] * 2
    with (
        pytest.raises(UserError, match="folder of `chopjax sweep`"),
        opened(tmp_path / "work", "run", looked_at.append),
    ):
        pass
    assert len(looked_at) == 2


def test_where_others_files_stand_nothing_is_written(tmp_path: Path) -> None:
    def check(workdir: Path) -> None:
        raise UserError("taken")

    with pytest.raises(UserError, match="taken"), opened(tmp_path / "work", "run", check):
        pass
    assert not (tmp_path / "work").exists()
