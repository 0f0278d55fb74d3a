"""Whose a folder is: chopjax deletes and replaces only what carries its own mark. No jax.

    FOLDER/.chopjax.json    {"format": 1, "verb": …, "files": {name: [bytes, sha256]},
                             "folders": […]}

The mark says which verb made a folder and what it put there. A file that the mark does not list, or
that was changed since, is somebody else's, and a folder that holds one is not replaced. Small files
are known by their sha256, large ones by that of blocks spread over them, and by not having been
written to after the mark: reading all weights again would double the time of a chop. A folder
that is still being written says `"files": null`: its name is hidden and random, and whatever is in
it is ours. The mark never rides along when a folder's files are copied (assets.py names those).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chopjax.errors import UserError

MARK = ".chopjax.json"
_FORMAT = 1
_BLOCKS, _BLOCK = 64, 1 << 14
_WHOLE = _BLOCKS * _BLOCK  # bytes of a small file


def begin_mark(folder: Path, verb: str) -> None:
    """Mark a folder that is about to be filled."""
    _write(folder / MARK, {"format": _FORMAT, "verb": verb, "files": None, "folders": None})


def make_folder(folder: Path) -> None:
    """A new folder that `mark_new` is about to mark. A run that is killed in between leaves it
    empty; its sticky bit then tells it from an empty folder of somebody else's."""
    folder.mkdir(0o1777)


def mark_new(folder: Path, verb: str) -> None:
    """Mark what make_folder made."""
    begin_mark(folder, verb)
    folder.chmod(folder.stat().st_mode & 0o777)


def write_mark(folder: Path, verb: str, into: Path | None = None) -> None:
    """Mark a folder with what is in it. into: the folder that it will all be moved to."""
    files: dict[str, list[Any]] = {}
    folders: list[str] = []
    for path in _below(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            folders.append(name)
        elif name != MARK:
            files[name] = _stamp(path)
    record = {"format": _FORMAT, "verb": verb, "files": files, "folders": sorted(folders)}
    _write((into or folder) / MARK, record)


def add_to_mark(folder: Path, name: str, written: Path) -> None:
    """Enter a file that is about to be renamed to FOLDER/NAME."""
    record = _read(folder)
    assert record is not None
    record["files"][name] = _stamp(written)
    _write(folder / MARK, record)


def add_tree_to_mark(folder: Path, name: str, written: Path) -> None:
    """Enter all of a folder that is about to be renamed to FOLDER/NAME, itself included."""
    record = _read(folder)
    assert record is not None
    paths = [written, *_below(written)]
    names = {path: Path(name, path.relative_to(written)).as_posix() for path in paths}
    folders = {names[path] for path in paths if path.is_dir()}
    record["folders"] = sorted(folders | set(record["folders"] or ()))
    record["files"] |= {names[path]: _stamp(path) for path in paths if not path.is_dir()}
    _write(folder / MARK, record)


def marked_by(folder: Path) -> str | None:
    """The verb that made a folder; None where chopjax did not."""
    record = _read(folder)
    return None if record is None else record["verb"]


def is_unfinished(folder: Path, verb: str) -> bool:
    """Whether a folder is one that this verb is filling, or was when it was killed."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if folder.stat().st_mode & stat.S_ISVTX:
        return all(name.startswith(MARK) for name in os.listdir(folder))
    record = _read(folder)
    return record is not None and record["verb"] == verb and record["files"] is None


def foreign(folder: Path, also: Iterable[str] = ()) -> list[str]:
    """What is in a marked folder and not as chopjax left it there: names, sorted.

    also: names right below the folder that are somebody else's business to judge.
    """
    record = _read(folder) or {}
    files, folders = record.get("files") or {}, record.get("folders") or []
    skipped, marked_ns = {MARK, *also}, _marked_ns(folder)
    names = []
    for path in _below(folder):
        name = path.relative_to(folder)
        if name.parts[0] in skipped:
            continue
        if path.is_dir() and not path.is_symlink():
            ours = name.as_posix() in folders
        else:
            is_file = path.is_file() and not path.is_symlink()
            ours = is_file and _is_as_left(path, files, name, marked_ns)
        if not ours:
            names.append(name.as_posix())
    return sorted(names)


def changed(folder: Path) -> list[str]:
    """Files that a folder's mark lists and that are gone or hold other bytes: names, sorted.

    Of large files blocks are looked at. Nothing for a folder without a mark.
    """
    files = (_read(folder) or {}).get("files") or {}
    return sorted(
        name
        for name, stamp in files.items()
        if not (folder / name).is_file() or _stamp(folder / name) != stamp
    )


def check_mark(folder: Path) -> None:
    """Raise UserError where something of the mark's name is not a mark, and would be replaced."""
    if os.path.lexists(folder / MARK) and _read(folder) is None:
        raise UserError(f"{folder / MARK}: not a mark that chopjax wrote; move it away")


def listed(folder: Path, name: str) -> bool:
    """Whether a file is there as the folder's mark has it."""
    record = _read(folder) or {}
    path, files = folder / name, record.get("files") or {}
    if not path.is_file() or path.is_symlink():
        return False
    return _is_as_left(path, files, Path(name), _marked_ns(folder))


def remove_marked(folder: Path) -> None:
    """Delete exactly what a folder's mark lists, and the folder if that leaves nothing in it."""
    record = _read(folder) or {}
    files, folders = record.get("files") or {}, record.get("folders") or []
    marked_ns = _marked_ns(folder)
    for path in sorted(_below(folder), reverse=True):  # what is in a folder before the folder
        name = path.relative_to(folder)
        if path.is_symlink():
            continue
        if path.is_file() and _is_as_left(path, files, name, marked_ns):
            path.unlink()
        elif path.is_dir() and name.as_posix() in folders and not os.listdir(path):
            path.rmdir()
    if set(os.listdir(folder)) <= {MARK}:
        (folder / MARK).unlink(missing_ok=True)
        folder.rmdir()


def is_taken(path: Path) -> bool:
    """Whether something stands there, an empty folder apart."""
    if path.is_symlink() or not path.is_dir():
        return path.is_symlink() or path.exists()
    return any(path.iterdir())


def some(names: Iterable[str]) -> str:
    """For a message: the first few."""
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_own(folder: Path, verb: str) -> None:
    """Raise UserError unless `verb` made the folder and all that is in it."""
    made_by = marked_by(folder)
    if made_by is None:
        raise UserError(
            f"{folder} has no {MARK} of `chopjax {verb}`, so it is not known to be chopjax's and "
            "is not replaced; move it away or give another name"
        )
    if made_by != verb:
        raise UserError(
            f"{folder} was made by `chopjax {made_by}`, and `chopjax {verb}` replaces only what "
            "it made itself; move it away or give another name"
        )
    if others := foreign(folder):
        raise UserError(
            f"{folder} holds what chopjax did not write, or what was changed since: "
            f"{some(others)}. It is not replaced; move that away or give another name"
        )


def _is_as_left(path: Path, files: Any, name: Path, marked_ns: int) -> bool:
    recorded = files.get(name.as_posix())
    if recorded is None or recorded[:1] != [path.stat().st_size] or recorded != _stamp(path):
        return False
    return recorded[0] <= _WHOLE or path.stat().st_mtime_ns <= marked_ns


def _stamp(path: Path) -> list[Any]:
    """Size, and sha256 of a small file or of 64 blocks of a large one."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return [size, digest.hexdigest()]


def _marked_ns(folder: Path) -> int:
    """When a folder was marked; ours were written before."""
    path = folder / MARK
    return path.stat().st_mtime_ns if path.is_file() else 0


def _below(folder: Path) -> Iterator[Path]:
    """Everything below a folder, links not followed."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent, name)


def _read(folder: Path) -> dict[str, Any] | None:
    """None where there is no mark, or something else under its name."""
    path = folder / MARK
    if folder.is_symlink() or path.is_symlink() or not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        sound = (
            record["format"] == _FORMAT
            and isinstance(record["verb"], str)
            and isinstance(record["files"], (dict, type(None)))
            and isinstance(record["folders"], (list, type(None)))
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if sound else None


def _write(path: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f"{MARK}.new-{secrets.token_hex(4)}")
    try:
        temporary.write_text(json.dumps(record) + "\n")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
