"""sha256.json: size and digest of every file of a folder, so that damage is seen and named.

Orbax keeps no checksum of array bytes: with one bit of a saved array flipped, at twelve places
in turn, it restored all twelve without a word (Orbax 0.12.8). No jax.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from chopjax.disk.files import inside
from chopjax.errors import UserError

MANIFEST = "sha256.json"
_HASH_BLOCK = 1 << 20
_HASH_THREADS = 4


def write_manifest(folder: Path) -> None:
    """Record all files of a folder. To be called last."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as threads:
        digests = list(threads.map(lambda name: _digest(folder / name), names))
    (folder / MANIFEST).write_bytes(_spelled(dict(zip(names, digests, strict=True))))


def _spelled(entries: Mapping[str, object]) -> bytes:
    return json.dumps(entries, indent=1).encode() + b"\n"


def verify_files(folder: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a folder; of `parts` processes each looks at its share."""
    path = folder / MANIFEST
    try:
        if inside(folder, MANIFEST) is None:
            return [f"{path}: missing"]
        raw = path.read_bytes()
        expected = json.loads(raw)
        mine = sorted(expected.items())[part::parts]
        entries = [(str(name), int(size), str(digest)) for name, (size, digest) in mine]
        if raw != _spelled(expected):
            return [f"{path}: not as it was written"]
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    except (UserError, ValueError, TypeError, AttributeError, OverflowError) as error:
        return [f"{path}: not readable ({error})"]
    except RecursionError:
        return [f"{path}: not readable (nested too deeply)"]

    def check(entry: tuple[str, int, str]) -> str | None:
        name, size, digest = entry
        try:
            path = inside(folder, name)
            if path is None:
                return f"{folder / name}: missing"
            found_size, found_digest = _digest(path)
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{folder / name}: {error.strerror}"
        if found_size != size:
            return f"{path}: {found_size} bytes instead of {size}"
        return None if found_digest == digest else f"{path}: the content has changed"

    with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as threads:
        return [problem for problem in threads.map(check, entries) if problem]


def _digest(path: Path) -> tuple[int, str]:
    """Size and sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return path.stat().st_size, digest.hexdigest()
