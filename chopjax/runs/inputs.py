"""What tells inputs apart: results follow the content of the model and of the texts that they came
from. Names, sizes and times of files save no more than reading them again (disk/hashes.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.identity import model_hashes
from chopjax.data.lists import text_names
from chopjax.data.sources import Source, find_sources
from chopjax.disk.hashes import file_hashes
from chopjax.train.settings import PARENT, TeacherSettings

# Of a training run's settings: which files it reads is told by their content, not by these.
_PLACES = ("model", "revision", "data.train", "data.evaluation")


class Contents:
    """Values that are equal where inputs are: sha256 of everything read."""

    def model(self, parent: Description) -> dict[str, Any]:
        """Configuration, tokenizer, weights; of a hub id the commit."""
        if parent.revision:
            return {"parent": parent.name, "revision": parent.revision}
        return {"files": [list(pair) for pair in model_hashes(parent).items()]}

    def texts(self, inputs: str, field: str) -> list[Any]:
        """Raises UserError where there is no such text."""
        return [[*file, field] for file in self.files(find_sources(text_names(inputs), field))]

    def files(self, sources: Iterable[Source]) -> list[list[Any]]:
        """[name, sha256] of every file; of what is not on this machine [address, size]."""
        files = [file for source in sources for file in source.files]
        hashes = file_hashes(p for file in files if (p := Path(file["name"])).is_file())
        return [
            [path.name, hashes[path]]
            if (path := Path(file["name"])) in hashes
            else [file["name"], file.get("size")]
            for file in files
        ]

    def teacher(self, asked: TeacherSettings) -> dict[str, Any]:
        """Of a training run; the parent is told apart where the parent is."""
        return _teacher(self, asked)

    def training(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Flat settings of a training run whose inputs are told apart elsewhere."""
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
        for source in find_sources(text_names(inputs), field):
            for file in source.files:
                path = Path(file["name"])
                time = path.stat().st_mtime_ns if path.exists() else None
                result.append([file["name"], file.get("size"), time, field])
        return result

    def teacher(self, asked: TeacherSettings) -> dict[str, Any]:
        return _teacher(self, asked)

    def training(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return dict(settings)


Inputs = Contents | Stamps

# What is looked for in records, and what is written there: the first.
WAYS: tuple[Inputs, ...] = (Contents(), Stamps())


def _teacher(inputs: Inputs, asked: TeacherSettings) -> dict[str, Any]:
    if asked.model in ("", PARENT):  # no key without one, so that what is done without stays done
        return {"teacher": PARENT} if asked.model else {}
    return {"teacher": inputs.model(describe(asked.model, asked.revision or None))}


def digest(content: Any) -> str:
    """sha256 of anything that survives JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
