"""chopjax.json: where a checkpoint that chopjax changed comes from. No jax.

    {"chopjax_version": …,
     "parent": {"name": …, "revision": …, "num_layers": …},   the first parent
     "strategy": …, "settings": {…},                            of the last chop; null without one
     "kept_layers": […],                                         in the first parent's numbering
     "history": [{"step": "chop", "parent": …, "strategy": …, "settings": …, "kept_layers": …},
                 {"step": "training", "kind": "full", "steps": …, …},
                 {"step": "classification", "template": {…}, …},
                 {"step": "sparsity", "method": …, "pattern": …, …},
                 {"step": "width", "method": …, "units": {…}, …},
                 {"step": "quantization", "weights": …, "group": …, …},
                 {"step": "dequantization", "weights": …}, …]}

`history` has one entry a chop, one a training run (see training_record.py), one where a model was
taught to classify (card_classification.py), one where weights became zero (card_sparsity.py), one
where layers became narrower (card_width.py), one where weights were quantized
(card_quantization.py) and one where they were in floating point again, for what follows it, oldest
first. A chop's layers are numbered as its own parent's are. An entry that says no step is a chop,
as all of an earlier version are. A chop's settings have `repair` where something was folded into
the layers that stayed: what and how, the tensors `folded` and `added` (chop/folds.py), errors and
losses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.checkpoint.source import Checkpoint, Files
from chopjax.disk.files import inside, read_json_object
from chopjax.errors import UserError, decoded

PROVENANCE = "chopjax.json"
CHOP, TRAINING, CLASSIFICATION = "chop", "training", "classification"
SPARSITY, WIDTH = "sparsity", "width"
QUANTIZATION, DEQUANTIZATION = "quantization", "dequantization"
SCRATCH = "random weights"  # the parent's name where there was none


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """The record of a folder, None where there is none. Raises UserError when it is damaged."""
    path = inside(folder, PROVENANCE)
    if path is None:
        return None
    record = read_json_object(path)
    history = record.get("history")
    if not (isinstance(history, list) and _is_model(record) and all(map(_is_sound, history))):
        raise UserError(
            f"{path}: parent, kept_layers and history are not those of a record that chopjax "
            "wrote; delete the file to treat this checkpoint as a parent of its own"
        )
    return record


def record_of(checkpoint: Files) -> dict[str, Any] | None:
    """The record of a checkpoint as it was opened: where its codes are read as the numbers that
    they stand for, that is the last thing that was done."""
    record = read_provenance(checkpoint.folder)
    if not isinstance(checkpoint, Checkpoint) or checkpoint.decoded is None:
        return record
    about = {"weights": checkpoint.decoded}
    model = checkpoint.name, checkpoint.revision, checkpoint.num_layers
    return add_entry(DEQUANTIZATION, record, *model, about)


def _is_model(record: Any) -> bool:
    """Whether it has what the record of a model says first: a parent and its kept layers."""
    if not isinstance(record, dict) or not isinstance(record.get("parent"), dict):
        return False
    parent, kept = record["parent"], record.get("kept_layers")
    num_layers = parent.get("num_layers")
    return (
        isinstance(parent.get("name"), str)
        and isinstance(parent.get("revision"), str | None)
        and isinstance(record.get("strategy"), str | None)  # None: trained, never chopped
        and isinstance(record.get("settings"), dict)
        and type(num_layers) is int
        and isinstance(kept, list)
        and all(type(layer) is int and 0 <= layer < num_layers for layer in kept)
    )


def _is_sound(entry: Any) -> bool:
    """Whether an entry of a history, which may be anybody's, has the parts that are read."""
    if not isinstance(entry, dict):
        return False
    if entry.get("step", CHOP) == CHOP:
        return _is_model(entry) and isinstance(entry["strategy"], str)
    stores, held_out = entry.get("data", []), entry.get("held_out")
    return (
        all(isinstance(entry.get(part, {}), dict) for part in ("optimizer", "learning_rate"))
        and _is_teacher(entry.get("teacher"))
        and isinstance(stores, list)
        and all(map(_is_store, stores))
        and (
            held_out is None
            or (
                isinstance(held_out, dict)
                and isinstance(held_out.get("window_loss"), float)
                and (held_out.get("data") is None or _is_store(held_out["data"]))
            )
        )
    )


def _is_teacher(teacher: Any) -> bool:
    """Nobody, or one whose layers are numbers."""
    layers = teacher.get("layers") or [] if isinstance(teacher, dict) else teacher
    return layers is None or (
        isinstance(layers, list) and all(type(layer) is int and layer >= 0 for layer in layers)
    )


def _is_store(store: Any) -> bool:
    sources = store.get("sources", []) if isinstance(store, dict) else None
    return isinstance(sources, list) and all(isinstance(name, str) for name in sources)


def entries(record: Mapping[str, Any] | None, step: str) -> list[dict[str, Any]]:
    """The chops or the training runs of a record's history, oldest first."""
    history = record["history"] if record else []
    return [entry for entry in history if entry.get("step", CHOP) == step]


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
    name = decoded(name)
    before = _before(previous, name, revision, num_layers)
    step = {
        "step": CHOP,
        "parent": {"name": name, "revision": revision, "num_layers": num_layers},
        "strategy": strategy,
        "settings": dict(settings),
        "kept_layers": list(kept),
    }
    return before | {
        "strategy": strategy,
        "settings": dict(settings),
        "kept_layers": [before["kept_layers"][layer] for layer in kept],
        "history": [*before["history"], step],
    }


def add_entry(
    step: str,
    previous: Mapping[str, Any] | None,
    name: str,
    revision: str | None,
    num_layers: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a model of so many layers that was changed and kept them all.

    step: TRAINING, about being what training_record.py says of the run; or another one, about as
    that one's card_….py has it. The rest is as in `compose`.
    """
    before = _before(previous, name, revision, num_layers)
    return before | {"history": [*before["history"], {"step": step, **about}]}


def check_provenance(checkpoint: Files) -> None:
    """Raise UserError where `add_entry` could not go on from its record. For asking before long
    work."""
    _before(record_of(checkpoint), checkpoint.name, None, checkpoint.num_layers)


def merged_onto(record: Mapping[str, Any] | None, onto: str) -> dict[str, Any]:
    """The record of a training run's adapters, merged: onto which weights (unread.py)."""
    assert record is not None  # such a run has one
    *before, last = record["history"]
    return dict(record) | {"history": [*before, last | {"merged_onto": onto}]}


def _before(
    previous: Mapping[str, Any] | None, name: str, revision: str | None, num_layers: int
) -> dict[str, Any]:
    """The record of the model `name` as it stands before the next entry."""
    if previous is not None and len(previous["kept_layers"]) != num_layers:
        raise UserError(
            f"{name}: {PROVENANCE} records {len(previous['kept_layers'])} kept layers and "
            f"config.json has {num_layers}; delete {PROVENANCE} to treat it as a parent of its own"
        )
    plain = {
        "chopjax_version": __version__,
        "parent": {"name": name, "revision": revision, "num_layers": num_layers},
        "strategy": None,
        "settings": {},
        "kept_layers": list(range(num_layers)),
        "history": list(previous["history"]) if previous else [],
    }
    # What was made of random weights is the first model that has a name: the parent of the rest.
    if previous is None or previous["parent"].get("name") == SCRATCH != name:
        return plain
    kept = {key: previous.get(key) for key in ("parent", "strategy", "settings", "kept_layers")}
    return plain | kept


def write_provenance(folder: Path, record: Mapping[str, Any]) -> None:
    """Write chopjax.json into a folder."""
    (folder / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n")
