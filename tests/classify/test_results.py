"""results.json: what is read back, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from chopjax.classify import results
from chopjax.errors import UserError

MODEL = {
    "name": "a/b",
    "num_layers": 4,
    "parameters": 10,
    "fingerprint": {"config": "1", "tensors": "2", "sample": "3"},
}
ROW: dict[str, Any] = {
    "task": "sst2", "strategy": "first", "keep": "0-1", "method": "full", "head": "lm", "seed": 0,
    "settings": {"learning_rate": 5e-5}, "layers": 2, "accuracy": 0.5, "macro_f1": 0.5,
    "held_out_accuracy": 0.5, "steps": 3, "epochs": 1, "seconds": 0.1, "trained_parameters": 10,
    "kept_parameters": 10, "chance": 0.5, "majority": 0.5,
}  # fmt: skip


def begun(folder: Path) -> results.Results:
    return results.begin(folder, MODEL, "sst2", {"epochs": 3})


def test_rows_come_back(tmp_path: Path) -> None:
    assert results.read_results(tmp_path) is None
    known = begun(tmp_path)
    assert results.read_results(tmp_path) is None  # nothing is measured yet
    results.add(tmp_path, known, ROW)
    assert begun(tmp_path) == known == results.read_results(tmp_path)
    assert results.find(known, ROW) == ROW
    assert results.find(known, ROW | {"seed": 1}) is None
    assert [path.name for path in tmp_path.iterdir()] == [results.RESULTS]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("rows",), {}),
        (("rows", 0, "accuracy"), "0.5"),
        (("rows", 0, "task"), "trec"),
        (("rows", 0, "seed"), True),
        (("tasks", "sst2"), []),
        (("model", "num_layers"), None),
    ],
)
def test_what_no_call_wrote_is_named(tmp_path: Path, path: tuple[Any, ...], value: Any) -> None:
    known = begun(tmp_path)
    results.add(tmp_path, known, dict(ROW))
    damaged = copy.deepcopy(known)
    place: Any = damaged
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (tmp_path / results.RESULTS).write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"results\.json: not the results .* or damaged; move it"):
        begun(tmp_path)
