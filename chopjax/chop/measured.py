"""What an analysis has found so far, on disk: one that is killed goes on from there, and one that
is asked for more. SLEB's search alone takes some hundred forward passes for each layer that it
removes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chopjax.disk.atomic import new_file
from chopjax.progress import say


class Measured:
    """Names → what was found, as JSON holds it. Floats come back as they were."""

    def __init__(self, path: Path | None, asked: Mapping[str, Any]):
        """What is in the file, if it is about the same. path: None where nothing is kept."""
        self._path, self._asked = path, json.loads(json.dumps(asked))
        self._found: dict[str, Any] = {}
        if path is None or not path.is_file():
            return
        try:
            content = json.loads(path.read_bytes())
            same = content["asked"] == self._asked
            found = dict(content["found"]) if same else {}
        except (ValueError, KeyError, TypeError):
            return  # damaged: it is written anew
        if found:
            say(f"going on with what was measured before: {', '.join(found)}")
        self._found = found

    def get(self, name: str) -> Any:
        """None where nothing was found."""
        return self._found.get(name)

    def keep(self, name: str, value: Any) -> None:
        self._found[name] = value
        if self._path is not None:
            with new_file(self._path, overwrite=True) as temporary:
                temporary.write_text(json.dumps({"asked": self._asked, "found": self._found}))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What was found under this name, or else what `make` finds now."""
        if name not in self._found:
            self.keep(name, make())
        return self._found[name]
