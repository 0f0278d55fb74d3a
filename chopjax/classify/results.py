"""results.json: the rows of a grid, and what they were measured under. No jax.

    {"format": 1, "chopjax_version": …, "model": {…},
     "tasks": {NAME: {"template": …, "settings": …, "fingerprints": …, "chance": …}},
     "rows": [{"task": …, "strategy": …, "keep": …, "method": …, "head": …, "seed": …,
               "accuracy": …, …}]}

It is written anew after every row, whole or not at all. A call with another template adds its task.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.checkpoint.identity import differences
from chopjax.disk.atomic import new_file
from chopjax.disk.files import read_json_object
from chopjax.errors import UserError, listing

RESULTS = "results.json"
FORMAT = 1
KEY = ("task", "strategy", "keep", "method", "head", "seed")
NUMBERS = ("layers", "accuracy", "macro_f1", "held_out_accuracy", "steps", "epochs", "seconds")
COUNTS = ("trained_parameters", "kept_parameters")

Row = dict[str, Any]
Results = dict[str, Any]


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def read_results(folder: Path) -> Results | None:
    """None where there are none. Raises UserError for what is there and no call wrote."""
    path = folder / RESULTS
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path}: not a file; move it away or give another --output")
    results = read_json_object(path)
    if not _is_sound(results):
        raise UserError(
            f"{path}: not the results of this chopjax's `classify`, or damaged; move it away or "
            "give another --output"
        )
    return results


def _is_sound(results: Mapping[str, Any]) -> bool:
    model, tasks, rows = (results.get(name) for name in ("model", "tasks", "rows"))
    return (
        results.get("format") == FORMAT
        and isinstance(model, dict)
        and isinstance(model.get("fingerprint"), dict)
        and all(type(model.get(name)) is int for name in ("num_layers", "parameters"))
        and isinstance(tasks, dict)
        and all(map(_is_task, tasks.values()))
        and isinstance(rows, list)
        and all(_is_row(row, tasks) for row in rows)
    )


def _is_task(task: Any) -> bool:
    return isinstance(task, dict) and isinstance(task.get("conditions"), dict)


def _is_row(row: Any, tasks: Mapping[str, Any]) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in KEY[:-1])
        and row["task"] in tasks
        and all(type(row.get(name)) is int for name in ("seed", *COUNTS))
        and all(type(row.get(name)) in (int, float) for name in (*NUMBERS, "chance", "majority"))
        and isinstance(row.get("settings"), dict)
    )


def begin(
    folder: Path, model: Mapping[str, Any], task: str, conditions: Mapping[str, Any]
) -> Results:
    """The results that a call goes on with. model: what they are of. conditions: what all rows of
    the task share.

    Raises UserError where the folder's are of another model, or this task's under other conditions.
    """
    results = read_results(folder)
    if results is None:
        results = {
            "format": FORMAT,
            "chopjax_version": __version__,
            "model": dict(model),
            "tasks": {},
            "rows": [],
        }
    elif changed := differences(results["model"]["fingerprint"], model["fingerprint"]):
        raise UserError(
            f"{folder} holds results of another model, {results['model'].get('name')}: "
            f"{' and '.join(changed)} differ. Give another --output"
        )
    known = results["tasks"].setdefault(task, {"conditions": dict(conditions)})["conditions"]
    now = json.loads(json.dumps(conditions))
    if changed := [
        f"{name}: was {known.get(name)!r}, is {now.get(name)!r}"
        for name in known | now
        if known.get(name) != now.get(name)
    ]:
        raise UserError(
            f"{folder} holds rows of {task} that were measured otherwise:\n{listing(changed)}\n"
            "Give another --output, or a template of another name"
        )
    return results


def find(results: Results, row: Mapping[str, Any]) -> Row | None:
    """The row with this key. Raises UserError where it was trained with other settings."""
    for other in results["rows"]:
        if key_of(other) != key_of(row):
            continue
        if other["settings"] != row["settings"]:
            raise UserError(
                f"{RESULTS} has {' '.join(map(str, key_of(row)))} with {_said(other['settings'])}; "
                f"now asked is {_said(row['settings'])}. Give another --output"
            )
        found: Row = other
        return found
    return None


def add(folder: Path, results: Results, row: Row) -> None:
    """Add a row, on disk too."""
    results["rows"].append(row)
    with new_file(folder / RESULTS, overwrite=True) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
