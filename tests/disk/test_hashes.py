"""Hashes by content: what is remembered is never taken for other bytes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from chopjax.disk import hashes
from chopjax.disk.hashes import file_hashes

LARGE = bytes(range(256)) * 8192


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SETTLED_NS", -(10**18))  # remember what was written just now
    return tmp_path / "cache" / "chopjax" / "hashes.json"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def right(path: Path) -> bool:
    return file_hashes([path]) == {path: hashlib.sha256(path.read_bytes()).hexdigest()}


def test_other_bytes_of_the_same_size_and_time(large: Path, cache: Path) -> None:
    assert right(large)
    assert str(large) in json.loads(cache.read_text())
    stat = large.stat()
    large.write_bytes(LARGE[::-1])
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert right(large)
    other = large.with_name("other")
    other.write_bytes(LARGE)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(large)
    assert right(large)


def test_known_bytes_are_not_read_again(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = file_hashes([large])
    monkeypatch.setattr(hashes, "_hash", None)
    assert file_hashes([large]) == found
    assert file_hashes([]) == {}


def test_small_and_unsettled_files_are_not_remembered(
    large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = large.with_name("small")
    small.write_bytes(b"few")
    assert right(small)
    monkeypatch.setattr(hashes, "SETTLED_NS", 10**12)
    assert right(large)
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"%s": [1, 2]}', b"[" * 100_000])
def test_a_damaged_memory_is_none(large: Path, cache: Path, content: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content.replace(b"%s", str(large).encode()))
    assert right(large)
    assert right(large)


def test_a_home_that_cannot_be_written(large: Path, cache: Path) -> None:
    cache.parent.parent.write_text("a file, where the folder should be")
    assert right(large)
