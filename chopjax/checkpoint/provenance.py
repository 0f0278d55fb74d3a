"""chopjax.json: where a chopped checkpoint comes from. No jax.

    {"chopjax_version": …,
     "parent": {"name": …, "revision": …, "num_layers": …},   the first parent
     "strategy": …, "settings": {…},                            of the last chop
     "kept_layers": […],                                         in the first parent's numbering
     "history": [{"parent": …, "strategy": …, "settings": …, "kept_layers": …}, …]}

`history` has one entry a chop, oldest first, each numbered as its own parent is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.checkpoint.files import inside, read_json_object
from chopjax.errors import UserError, decoded

PROVENANCE = "chopjax.json"


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """The record of a folder, None where there is none. Raises UserError when it is damaged."""
    path = inside(folder, PROVENANCE)
    if path is None:
        return None
    record = read_json_object(path)
    history = record.get("history")
    if not isinstance(history, list) or not all(map(_is_step, [record, *history])):
        raise UserError(
            f"{path}: parent, kept_layers and history are not those of a record that chopjax "
            "wrote; delete the file to treat this checkpoint as a parent of its own"
        )
    return record


def _is_step(record: Any) -> bool:
    """Whether it has what a chop records: parent, strategy and kept layers of that parent."""
    if not isinstance(record, dict) or not isinstance(record.get("parent"), dict):
        return False
    parent, kept = record["parent"], record.get("kept_layers")
    num_layers = parent.get("num_layers")
    return (
        isinstance(parent.get("name"), str)
        and isinstance(parent.get("revision"), str | None)
        and isinstance(record.get("strategy"), str)
        and isinstance(record.get("settings"), dict)
        and type(num_layers) is int
        and isinstance(kept, list)
        and all(type(layer) is int and 0 <= layer < num_layers for layer in kept)
    )


def compose(
    previous: Mapping[str, Any] | None,
    name: str,
    revision: str | None,
    num_layers: int,
    strategy: str,
    settings: Mapping[str, Any],
    kept: Sequence[int],
) -> dict[str, Any]:
    """The record of a chop of the checkpoint `name`, which itself may be a chopped one.

    previous: the record of the checkpoint that is chopped; num_layers: its layers; kept: the
    layers kept, in its numbering. Raises UserError when the two do not fit.
    """
    parent = {"name": decoded(name), "revision": revision, "num_layers": num_layers}
    step = {
        "parent": parent,
        "strategy": strategy,
        "settings": dict(settings),
        "kept_layers": list(kept),
    }
    origin, kept_layers, history = parent, list(kept), [step]
    if previous is not None:
        before = previous["kept_layers"]
        if len(before) != num_layers:
            raise UserError(
                f"{name}: {PROVENANCE} records {len(before)} kept layers and config.json has "
                f"{num_layers}; delete {PROVENANCE} to treat it as a parent of its own"
            )
        origin = previous["parent"]
        kept_layers = [before[layer] for layer in kept]
        history = [*previous["history"], step]
    return {
        "chopjax_version": __version__,
        "parent": origin,
        "strategy": strategy,
        "settings": dict(settings),
        "kept_layers": kept_layers,
        "history": history,
    }


def write_provenance(folder: Path, record: Mapping[str, Any]) -> None:
    """Write chopjax.json into a folder."""
    (folder / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n")
