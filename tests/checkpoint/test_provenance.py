"""The record of a chop, and of a chop of a chop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.checkpoint.provenance import (
    CHOP,
    TRAINING,
    add_entry,
    compose,
    entries,
    read_provenance,
    write_provenance,
)
from chopjax.errors import UserError


def subset(num_layers: int) -> st.SearchStrategy[list[int]]:
    layers = st.sets(st.integers(0, num_layers - 1), min_size=1)
    return layers.map(sorted)


@given(st.data(), st.integers(1, 40))
def test_kept_layers_are_those_of_the_first_parent(data: st.DataObject, num_layers: int) -> None:
    layers = list(range(num_layers))
    record = None
    for round_ in range(3):
        kept = data.draw(subset(len(layers)))
        record = compose(record, f"m{round_}", None, len(layers), "keep", {}, kept)
        layers = [layers[i] for i in kept]
        assert record["kept_layers"] == layers
        assert record["parent"] == {"name": "m0", "revision": None, "num_layers": num_layers}
        assert [step["parent"]["name"] for step in record["history"]] == [
            f"m{i}" for i in range(round_ + 1)
        ]


def test_written_and_read(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) is None
    record = compose(None, "owner/name", "abc", 4, "input", {"remove": 2}, (0, 3))
    write_provenance(tmp_path, record)
    assert read_provenance(tmp_path) == record


@pytest.mark.parametrize(
    "change",
    [
        {"kept_layers": None},
        {"kept_layers": [0, 4]},
        {"kept_layers": [0, "3"]},
        {"parent": "owner/name"},
        {"parent": {"name": "x"}},
        {"history": {}},
        {"history": ["chop"]},
        {"history": [{"step": "training", "optimizer": "lion"}]},
        {"history": [{"step": "training", "data": [{"sources": [1]}]}]},
        {"history": [{"step": "training", "held_out": {"window_loss": "low"}}]},
        {"parent": {"name": 5, "num_layers": 4}},
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    record = compose(None, "owner/name", "abc", 4, "input", {"remove": 2}, (0, 3))
    (tmp_path / "chopjax.json").write_text(json.dumps(record | change))
    with pytest.raises(UserError, match=r"chopjax\.json"):
        read_provenance(tmp_path)


def test_a_record_of_another_model_is_refused() -> None:
    record = compose(None, "owner/name", None, 4, "input", {}, (0, 3))
    with pytest.raises(UserError, match="records 2 kept layers"):
        compose(record, "other", None, 3, "input", {}, (0, 2))


def test_a_trained_model_that_was_never_chopped_is_read(tmp_path: Path) -> None:
    record = add_entry(TRAINING, None, "random weights", None, 2, {"steps": 1})
    write_provenance(tmp_path, record)
    assert read_provenance(tmp_path) == record


def test_chops_and_training_in_one_history() -> None:
    """Chopped, healed, chopped again, healed again; an old entry says no step and is a chop."""
    record = compose(None, "owner/name", "abc", 8, "input", {}, (0, 4, 5, 6, 7))
    del record["history"][0]["step"]
    record = add_entry(TRAINING, record, "chopped", None, 5, {"kind": "full", "steps": 3})
    assert record["kept_layers"] == [0, 4, 5, 6, 7]
    assert record["strategy"] == "input"
    record = compose(record, "healed", None, 5, "output", {}, (0, 1, 4))
    record = add_entry(TRAINING, record, "chopped", None, 3, {"kind": "full", "steps": 4})
    assert record["parent"] == {"name": "owner/name", "revision": "abc", "num_layers": 8}
    assert record["kept_layers"] == [0, 4, 7]
    assert [entry["strategy"] for entry in entries(record, CHOP)] == ["input", "output"]
    assert [entry["steps"] for entry in entries(record, TRAINING)] == [3, 4]
    with pytest.raises(UserError, match="records 3 kept layers"):
        add_entry(TRAINING, record, "other", None, 4, {})
    trained = add_entry(TRAINING, None, "owner/name", None, 2, {"steps": 1})
    assert trained["kept_layers"] == [0, 1]
    assert trained["strategy"] is None
