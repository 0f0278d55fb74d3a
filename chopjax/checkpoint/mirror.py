"""A local file that stands for a remote one and holds only the ranges that were asked for.

The file is sparse and has the remote one's size, so that every offset is the same in both. A
journal beside it (`NAME.ranges`) lists the ranges that are there: a range is entered after its
bytes have reached the disk, so that a download that was killed resumes, and what the journal does
not list is never taken for data.

fsspec has a cache of ranges as well (`blockcache`), whose list of blocks can be ahead of its file:
after an interrupted read it handed out zeros for blocks that it took for held, without an error
(fsspec 2026.9, tried over HfFileSystem), and it read four times what was asked for. No jax.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from chopjax.disk.atomic import new_file, set_aside
from chopjax.progress import say

Range = tuple[int, int]  # first byte, one past the last


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Ascending, with overlapping and adjacent ranges joined and empty ones dropped."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def subtract(start: int, end: int, held: Iterable[Range]) -> list[Range]:
    """The parts of a range that lie in none of `held`, which is merged."""
    missing = []
    for low, high in held:
        if start < low:
            missing.append((start, min(low, end)))
        start = max(start, high)
        if start >= end:
            break
    return merge([*missing, (start, end)])


class Mirror:
    """One remote file. `nbytes` is its size, `etag` the version that the server names."""

    def __init__(self, path: Path, nbytes: int, etag: str):
        self.path, self.nbytes, self.etag = path, nbytes, etag
        self.held: list[Range] = []
        self._lock = threading.Lock()

    @property
    def _journal(self) -> Path:
        return self.path.with_name(self.path.name + ".ranges")

    def open(self) -> None:
        """Take up what an earlier run left, or begin. The folder's lock must be held."""
        lines = self._journal.read_bytes().split(b"\n") if self._journal.exists() else []
        head = json.dumps({"bytes": self.nbytes, "etag": self.etag}).encode()
        same_file = self.path.exists() and self.path.stat().st_size == self.nbytes
        if not same_file or not lines or lines[0] != head:
            if stored(self.path) is None:  # whatever is there, no download of ours put it there
                for path in (self.path, self._journal):
                    if os.path.lexists(path):
                        set_aside(path)
            # First what says that the file is ours.
            with new_file(self._journal, overwrite=True) as path:
                path.write_bytes(head + b"\n")
            with self.path.open("wb") as file:
                file.truncate(self.nbytes)
            lines = [head]
            self.held = []
        else:
            # The last line is empty, or torn by a kill: what it spoke of is downloaded again.
            self.held = merge(_parse(line, self.nbytes) for line in lines[1:-1])
            lines = lines[:-1]
        self._journal.write_bytes(b"\n".join(lines) + b"\n")

    def missing(self, start: int, end: int) -> list[Range]:
        """The parts of a range that still have to be downloaded."""
        with self._lock:
            return subtract(start, end, self.held)

    def record(self, file: BinaryIO, start: int, end: int) -> None:
        """Enter a range whose bytes have been written to `file`, which is the mirror, opened."""
        if start >= end:
            return
        file.flush()
        os.fdatasync(file.fileno())
        with self._lock:
            with self._journal.open("ab") as journal:
                journal.write(f"{start} {end}\n".encode())
            self.held = merge([*self.held, (start, end)])


def _parse(line: bytes, nbytes: int) -> Range:
    """A journal line; (0, 0) for one that makes no sense."""
    try:
        start, end = map(int, line.split())
    except ValueError:
        return 0, 0
    return (start, end) if 0 <= start < end <= nbytes else (0, 0)


def stored(path: Path) -> tuple[int, str] | None:
    """Size and etag of the file that a mirror on this machine stands for, None where none is."""
    journal = path.with_name(path.name + ".ranges")
    try:
        with journal.open("rb") as lines:
            head = json.loads(lines.readline())
        return int(head["bytes"]), str(head["etag"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time writes to the mirrors of a folder; a dead one's turn is over."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that downloads to {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
