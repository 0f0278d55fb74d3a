"""Files of numbers and nothing else, in a local folder or behind a URL of fsspec (gs://…)."""

from __future__ import annotations

import functools
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from chopjax.disk.files import expanded
from chopjax.errors import UserError

_OPEN_FILES = 256  # mapped at once, a file descriptor each
_KEPT_FILES = 128  # fetched, in memory


class LocalFiles:
    """Arrays mapped into memory."""

    def __init__(self, folder: str):
        self._folder = Path(folder)
        self.whole = functools.lru_cache(_OPEN_FILES)(self._map)

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        path = self._folder / name
        if not path.stat().st_size:
            return np.empty(0, dtype)  # nothing cannot be mapped
        return np.asarray(np.memmap(path, dtype, mode="r"))

    def read(self, ranges: list[tuple[str, int, int]], dtype: np.dtype) -> list[np.ndarray]:
        return [self.whole(name, dtype)[start:stop] for name, start, stop in ranges]


class RemoteFiles:
    """Range requests, many at once where the file system can."""

    def __init__(self, url: str):
        self._system, self._folder = fsspec.core.url_to_fs(url)
        self.whole = functools.lru_cache(_KEPT_FILES)(self._fetch)

    def _fetch(self, name: str, dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(self._system.cat_file(f"{self._folder}/{name}"), dtype)

    def read(self, ranges: list[tuple[str, int, int]], dtype: np.dtype) -> list[np.ndarray]:
        paths = [f"{self._folder}/{name}" for name, _, _ in ranges]
        starts = [start * dtype.itemsize for _, start, _ in ranges]
        stops = [stop * dtype.itemsize for _, _, stop in ranges]
        chunks = self._system.cat_ranges(paths, starts, stops, on_error="raise")
        return [np.frombuffer(data, dtype) for data in chunks]


def array_files(folder: str) -> LocalFiles | RemoteFiles:
    return RemoteFiles(folder) if "://" in folder else LocalFiles(folder)


def file_sizes(folder: str) -> dict[str, int]:
    """Name → bytes of the files right in a folder or behind a URL."""
    system, path = file_system(folder)
    entries = system.ls(path, detail=True)
    return {os.path.basename(f["name"]): f["size"] for f in entries if f["type"] == "file"}


def differing(folder: str, expected: dict[str, str]) -> list[str]:
    """Of files with the sha256 that they should have, those that have another."""
    system, path = file_system(folder)

    def differs(file: str) -> bool:
        with system.open(f"{path}/{file}", "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() != expected[file]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return [f for f, bad in zip(expected, pool.map(differs, expected), strict=True) if bad]


def file_system(name: str) -> tuple[Any, str]:
    """Of a URL or a local path, and the path in it. Raises UserError for a URL that leads nowhere.

    A local path is taken as it stands, also one with `::`, which fsspec would take for a chain.
    """
    if "://" not in name:
        return LocalFileSystem(), os.path.abspath(expanded(name))
    try:
        system, folder = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"{name}: cannot be opened ({error})") from error
    return system, folder
