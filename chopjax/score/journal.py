"""Answers on disk as they come, so that a run that was killed scores nothing twice.

A journal is a text file. Its first line says what the answers depend on besides the request; each
other line is one answer: the request's hash and the answer as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chopjax.errors import UserError
from chopjax.progress import say

Pair = tuple[np.ndarray, np.ndarray]  # context ids, continuation ids


class Journal:
    """Opened by a run, removed by it when its results are written."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        """identity: what answers depend on (see identity.py); each has a journal of its own. Raises
        UserError where it cannot be written."""
        head = json.dumps(identity, sort_keys=True)
        name = hashlib.blake2b(head.encode(), digest_size=6).hexdigest()
        self.path = path = folder / f"journal-{name}.txt"
        self._known: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._read(head)
            if not kept:
                _say_others(folder, identity)
            # Unbuffered: what has been answered is out of this process at once.
            self._file = path.open("r+b" if kept else "wb", buffering=0)
            if kept:
                # A line that the kill cut in two goes.
                self._file.truncate(kept)
                self._file.seek(kept)
            else:
                self._file.write(f"{head}\n".encode())
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error

    def _read(self, head: str) -> int:
        """Fill `_known`; returns the bytes that are good, 0 where there are none. Raises UserError
        where the file is not a journal with this head, perhaps cut short."""
        if not os.path.lexists(self.path):
            return 0
        is_file = self.path.is_file() and not self.path.is_symlink()
        lines = self.path.read_bytes().split(b"\n") if is_file else []
        whole = f"{head}\n".encode()
        if not is_file or not whole.startswith(lines[0] + b"\n" * (len(lines) > 1)):
            raise UserError(f"{self.path}: not the journal that its name says; move it away")
        if len(lines) == 1:
            return 0
        kept = 0
        for number, line in enumerate(lines[:-1]):  # the last is empty or cut
            if number:
                try:
                    key, answer = line.decode().split(" ", 1)
                    self._known[key] = json.loads(answer)
                except ValueError:
                    say(f"note: {self.path}: line {number + 1} is damaged; going on from there")
                    break
            kept += len(line) + 1
        return kept

    def lookup(self, keys: Sequence[str]) -> dict[int, Any]:
        """Index → answer, of the keys that are answered already."""
        known = self._known
        return {index: known[key] for index, key in enumerate(keys) if key in known}

    def add(self, key: str, answer: Any) -> None:
        """Write an answer down."""
        try:
            self._file.write(f"{key} {json.dumps(answer)}\n".encode())
        except OSError as error:
            raise UserError(
                f"{self.path}: {error.strerror}; the answers so far are kept"
            ) from error

    def remove(self) -> None:
        """The results are written: nothing is left to remember."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def _say_others(folder: Path, identity: Mapping[str, Any]) -> None:
    """That a run began here with another model or setting, whose answers are of no use now."""
    for path in sorted(folder.glob("journal-*.txt")):
        try:
            with path.open("rb") as file:
                other = json.loads(file.readline(1 << 20))
            changed = _changed(other, identity)
        except (OSError, ValueError, RecursionError):
            continue
        if changed:
            say(
                f"note: {path} has the answers of a run with another {', '.join(changed[:4])}; "
                "they are not used"
            )


def _changed(old: Any, new: Mapping[str, Any]) -> list[str]:
    """Names of what is not equal in two identities; of files, the files'."""
    if not isinstance(old, dict):
        return []
    names: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        both = isinstance(old.get(key), dict) and isinstance(new.get(key), Mapping)
        names += _changed(old[key], new[key]) if both else [key]
    return names


def pair_key(pair: Pair) -> str:
    """For the answer [log-likelihood, greedy]."""
    context, continuation = pair
    return _hash(np.asarray(context, "<i4").tobytes(), np.asarray(continuation, "<i4").tobytes())


def prompt_key(prompt: np.ndarray, settings: Mapping[str, Any]) -> str:
    """For the text that follows a prompt."""
    return _hash(np.asarray(prompt, "<i4").tobytes(), json.dumps(settings, sort_keys=True).encode())


def _hash(first: bytes, second: bytes) -> str:
    digest = hashlib.blake2b(first, digest_size=12)
    digest.update(len(first).to_bytes(8, "little"))
    digest.update(second)
    return digest.hexdigest()
