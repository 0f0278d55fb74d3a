"""Hashes of files by content. No jax.

What was hashed once is remembered in the user's cache folder, and read again only when the file's
place, inode, size or one of its times has changed: those only save the reading. A file that may
still be written in the same tick of the clock is not remembered.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chopjax.disk.atomic import new_file
from chopjax.disk.files import expanded
from chopjax.errors import UserError
from chopjax.progress import progress

SMALL = 1 << 20  # bytes; reading so few costs less than remembering them
MOST = 4096  # files that are remembered, the newest of them
SETTLED_NS = 2 * 10**9  # since the last change of a file that is remembered
PIECE = 1 << 22  # bytes read at a time


def file_hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """The sha256 of every file. A progress bar counts the bytes that have to be read."""
    stamps = {path: _stamp(path) for path in paths}
    memory = _read()
    mine, memory = memory is not None, memory or {}
    known: dict[Path, str] = {}
    for path, stamp in stamps.items():
        remembered = memory.get(str(path.resolve()), [])
        if remembered[:-1] == stamp:
            known[path] = remembered[-1]
    left = [path for path in stamps if path not in known]
    if not left:
        return known
    total = sum(path.stat().st_size for path in left)
    threads = concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    with threads, progress("hash files", total, "B") as bar:
        for path, digest in zip(left, threads.map(_hash, left), strict=True):
            known[path] = digest
            bar.advance(path.stat().st_size)
    settled = time.time_ns() - SETTLED_NS
    new = {
        str(path.resolve()): [*stamps[path], known[path]]
        for path in left
        if stamps[path][1] >= SMALL and max(stamps[path][2:]) < settled
    }
    if new and mine:
        _write({**memory, **new})
    return {path: known[path] for path in stamps}


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _place() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(home) / "chopjax" / "hashes.json"


def _read() -> dict[str, list[Any]] | None:
    """Path → stamp and hash; None where something else is in the place, which stays as it is."""
    try:
        entries = json.loads(_place().read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, RuntimeError):
        return None
    ours = isinstance(entries, dict) and all(map(_is_entry, entries.values()))
    return entries if ours else None


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 5 and isinstance(entry[-1], str)


def _write(memory: Mapping[str, list[Any]]) -> None:
    newest = dict(list(memory.items())[-MOST:])
    try:
        with new_file(_place(), overwrite=True) as path:
            path.write_text(json.dumps(newest))
    except (OSError, UserError, RuntimeError):  # a home that cannot be written costs time alone
        return
