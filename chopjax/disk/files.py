"""Small files of a checkpoint folder that came from somebody else."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from chopjax.errors import UserError

MAX_JSON_BYTES = 64_000_000
MAX_JSON_DEPTH = 64  # what is read is written again, by code that calls itself a level

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_ADVICE = (
    "a pointer of git-LFS, not the file itself: the repository was cloned without git-lfs. Run "
    "`git lfs install && git lfs pull` there, or give the hub id instead of the folder"
)


def inside(folder: Path, name: str) -> Path | None:
    """The regular file `name` of a folder, None where there is none.

    A name or link that leads out of the folder is refused, so that a checkpoint cannot make us
    read (and publish) a file of this machine. The one exception are the links of the Hugging Face
    cache, from models--X/snapshots/REVISION to models--X/blobs.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or not name.isprintable():
        raise UserError(f"{folder}: refused to read {name!r}, which points outside the folder")
    path = folder / parts
    try:
        if not path.is_file():
            return None
    except OSError as error:  # a name too long for the file system, a folder that is forbidden
        raise UserError(f"{path}: {error.strerror}") from None
    allowed = [folder.resolve()]
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in allowed):
        raise UserError(
            f"{path}: a link to {target}, outside the folder; put a copy in its place if you "
            "trust it"
        )
    return path


def folder_inside(folder: Path, name: str) -> Path | None:
    """The folder `name` of a folder, None where there is none; a link that leads out is refused."""
    path = folder / name
    if not path.is_dir():
        return None
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UserError(f"{path}: a link to {target}, outside the folder; move it here instead")
    return path


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object; anything else is a UserError that says where it breaks."""
    try:
        nbytes = path.stat().st_size
        if nbytes > MAX_JSON_BYTES:
            raise UserError(f"{path}: {nbytes:,} bytes of JSON are more than any checkpoint has")
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if raw.startswith(LFS_POINTER):
        raise UserError(f"{path}: {LFS_ADVICE}")
    try:
        value = json.loads(raw.decode("utf-8"))
        too_deep = isinstance(value, dict | list) and _is_deeper(value, MAX_JSON_DEPTH)
    except RecursionError:
        too_deep = True
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if too_deep:
        raise UserError(f"{path}: nested more than {MAX_JSON_DEPTH} deep, as no checkpoint is")
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is needed, found {type(value).__name__}")
    return value


def _is_deeper(value: dict[str, Any] | list[Any], limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` deep; level by level, not by calls."""
    level: list[Any] = [value]
    for _ in range(limit):
        inner = [v.values() if isinstance(v, dict) else v for v in level]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return False
    return True


def expanded(path: str | os.PathLike[str]) -> Path:
    """`~` and `~user` at the beginning replaced by the home folder.

    Raises UserError where there is no such user, and for what no path can hold.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise UserError(f"{text!r}: a path cannot hold a zero byte")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"{text}: {text.partition('/')[0]} has no home folder here; write ./{text} for a name "
            "that begins with ~"
        ) from None
