"""The record of a chop, and of a chop of a chop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.checkpoint.provenance import compose, read_provenance, write_provenance
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
