"""Small files of a checkpoint folder that came from somebody else."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from chopjax.errors import UserError


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
    if not path.is_file():
        return None
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


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object; anything else is a UserError that says where it breaks."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is needed, found {type(value).__name__}")
    return value
