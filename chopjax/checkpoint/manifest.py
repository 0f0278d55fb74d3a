"""sha256.json: size and digest of every file of a folder, so that damage is seen and named.

Orbax keeps no checksum of array bytes: a flipped bit would be restored without a word. No jax.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from pathlib import Path

MANIFEST = "sha256.json"
_HASH_BLOCK = 1 << 20
_HASH_THREADS = 4


def write_manifest(folder: Path) -> None:
    """Record all files of a folder. To be called last."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as threads:
        digests = list(threads.map(lambda name: _digest(folder / name), names))
    (folder / MANIFEST).write_text(
        json.dumps(dict(zip(names, digests, strict=True)), indent=1) + "\n"
    )


def verify_files(folder: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a folder; of `parts` processes each looks at its share."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())
        mine = sorted(expected.items())[part::parts]
        entries = [(str(name), int(size), str(digest)) for name, (size, digest) in mine]
    except FileNotFoundError:
        return [f"{folder / MANIFEST}: missing"]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return [f"{folder / MANIFEST}: not readable ({error})"]

    def check(entry: tuple[str, int, str]) -> str | None:
        name, size, digest = entry
        path = folder / name
        try:
            found_size, found_digest = _digest(path)
        except FileNotFoundError:
            return f"{path}: missing"
        except OSError as error:
            return f"{path}: {error.strerror}"
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
