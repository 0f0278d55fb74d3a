"""What `run` and `sweep` will write is held against the disk before they begin."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from chopjax.errors import UserError
from chopjax.runs.space import check_space
from chopjax.train import space

Usage = namedtuple("Usage", "total used free")


def test_models_and_tokens_are_counted_without_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"word " * 200)
    workdir = tmp_path / "work"
    workdir.mkdir()
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: Usage(10**9, 0, 5000))
    with pytest.raises(UserError, match=r"about 5,001 bytes .* 0 are there .* 5,000 are free"):
        check_space(workdir, [], "text", 5001)
    with pytest.raises(UserError, match=r"about 5,500 bytes will be written"):
        check_space(workdir, [str(text)], "text", 5000)
    (workdir / "there").write_bytes(bytes(500))
    check_space(workdir, [str(text)], "text", 5000)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: Usage(0, 0, 0))
    check_space(workdir, [str(text)], "text", 10**12)  # a file system that does not say
