"""What tells inputs apart: results follow the model and the texts that they came from.

By content: a file that was merely touched, copied or moved is the same. Size and times only save
reading a file again that is the very one read before.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from chopjax.checkpoint.assets import assets
from chopjax.checkpoint.atomic import new_file
from chopjax.checkpoint.describe import Description
from chopjax.checkpoint.source import INDEX, Checkpoint
from chopjax.data.lists import text_names
from chopjax.data.sources import find_sources
from chopjax.progress import progress

HASHES = ".hashes.json"  # in a workdir
_FORMAT = 1
_GRAIN_NS = 2 * 10**9  # a change so soon after another may bear the same time
# Of a training run's settings: which files it reads is told by their content, not by these.
_PLACES = ("model", "revision", "data.train", "data.evaluation")


class Inputs(Protocol):
    """Values that are equal where inputs are."""

    def model(self, parent: Description) -> dict[str, Any]: ...

    def texts(self, inputs: str, field: str) -> list[Any]:
        """Raises UserError where there is no such text."""

    def training(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Flat settings of a training run whose inputs are told apart elsewhere."""


class Contents:
    """sha256 of everything read. cache: the file of a workdir that remembers them."""

    def __init__(self, cache: Path):
        self._hashes = Hashes(cache)

    def model(self, parent: Description) -> dict[str, Any]:
        """Configuration, tokenizer, weights; of a hub id the commit."""
        if parent.revision:
            return {"parent": parent.name, "revision": parent.revision}
        found = {parent.folder / name for name in assets(parent.folder)}
        if isinstance(parent.weights, Checkpoint):
            found |= {tensor.file for tensor in parent.weights.tensors.values()}
            found |= {p for p in [parent.folder / INDEX] if p.is_file()}
        else:
            found |= {path for path in parent.weights.rglob("*") if path.is_file()}
        files = sorted(found)
        hashes = self._hashes.of(files)
        return {"files": [[file.name, sha256] for file, sha256 in zip(files, hashes, strict=True)]}

    def texts(self, inputs: str, field: str) -> list[Any]:
        """[name, sha256, field] of every file; of what is not on this machine its size."""
        files = _files(inputs, field)
        local = [Path(file["name"]) for file in files if Path(file["name"]).is_file()]
        known = dict(zip(map(str, local), self._hashes.of(local), strict=True))
        return [
            [Path(name).name, known[name], field]
            if name in known
            else [name, file.get("size"), field]
            for file in files
            for name in [file["name"]]
        ]

    def training(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in settings.items() if name not in _PLACES}


class Stamps:
    """Sizes and times, as chopjax took them before it looked at the content: for what is recorded
    in workdirs of that time."""

    def model(self, parent: Description) -> dict[str, Any]:
        if parent.revision:
            return {"parent": parent.name, "revision": parent.revision}
        files = [file for file in sorted(parent.folder.iterdir()) if file.is_file()]
        stats = {file.name: file.stat() for file in files}
        return {
            "parent": str(parent.folder.resolve()),
            "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
        }

    def texts(self, inputs: str, field: str) -> list[Any]:
        result = []
        for file in _files(inputs, field):
            path = Path(file["name"])
            time = path.stat().st_mtime_ns if path.exists() else None
            result.append([file["name"], file.get("size"), time, field])
        return result

    def training(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return dict(settings)


def _files(inputs: str, field: str) -> list[dict[str, Any]]:
    return [file for source in find_sources(text_names(inputs), field) for file in source.files]


class Hashes:
    """sha256 of files. Those that are in every respect the ones read before are not read again."""

    def __init__(self, path: Path):
        self.path = path
        self._known: dict[str, list[Any]] = {}  # path → [size, times and inode, sha256]
        self._mine = not path.exists()
        try:
            record = json.loads(path.read_text())
            if record["format"] == _FORMAT:
                self._known, self._mine = dict(record["sha256"]), True
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or somebody else's, which stays as it is

    def of(self, files: Sequence[Path]) -> list[str]:
        """In the order given."""
        found = {file.resolve() for file in files}
        new = [file for file in sorted(found) if self._lookup(file) is None]
        with (
            progress("checksums", sum(file.stat().st_size for file in new), "B") as bar,
            ThreadPoolExecutor(4) as pool,
        ):
            for file, entry in zip(new, pool.map(_entry, new), strict=True):
                self._known[str(file)] = entry
                bar.advance(entry[0][0])
        hashes = [self._known[str(file.resolve())][1] for file in files]
        if new and self._mine:
            self._write()
        return hashes

    def _lookup(self, file: Path) -> str | None:
        entry = self._known.get(str(file))
        return entry[1] if entry is not None and entry[0] == _stamp(file) else None

    def _write(self) -> None:
        now = time.time_ns()
        settled = {name: e for name, e in self._known.items() if now - max(e[0][1:3]) > _GRAIN_NS}
        with new_file(self.path, overwrite=True) as path:
            path.write_text(json.dumps({"format": _FORMAT, "sha256": settled}) + "\n")


def _entry(file: Path) -> list[Any]:
    stamp = _stamp(file)
    with file.open("rb") as stream:
        return [stamp, hashlib.file_digest(stream, "sha256").hexdigest()]


def _stamp(file: Path) -> list[int]:
    """The time of the last change cannot be set back, unlike that of the last writing."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
