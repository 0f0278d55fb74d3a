"""What tells inputs apart: results follow the model and the texts that they came from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chopjax.checkpoint.describe import Description
from chopjax.checkpoint.source import Checkpoint
from chopjax.data.sources import Source, find_sources
from chopjax.pipeline_settings import names


def identity(parent: Description) -> dict[str, Any]:
    """What tells one parent from another: a commit, or the sizes and times of all its files."""
    if parent.revision:
        return {"parent": parent.name, "revision": parent.revision}
    assert isinstance(parent.weights, Checkpoint)
    # config.json and the tokenizer count as much as the weights.
    stats = {file.name: file.stat() for file in sorted(parent.folder.iterdir()) if file.is_file()}
    return {
        "parent": str(parent.folder.resolve()),
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }


def text_files(inputs: str, field: str) -> list[Any]:
    """The files of a text source with their sizes and times, and the field that is their text.

    Raises UserError if there is none.
    """
    return [[*file, field] for file in of_sources(find_sources(names(inputs), field))]


def of_sources(sources: Iterable[Source]) -> list[list[Any]]:
    """Of every file of these sources its name, size and time."""
    result = []
    for file in (file for source in sources for file in source.files):
        path = Path(file["name"])
        time = path.stat().st_mtime_ns if path.exists() else None
        result.append([file["name"], file.get("size"), time])
    return result
