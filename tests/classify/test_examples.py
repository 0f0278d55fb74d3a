"""Labelled examples: which fields are read, and what is said where one has no class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chopjax.classify.examples import (
    Example,
    check_apart,
    document,
    fingerprint,
    read_examples,
)
from chopjax.classify.templates import read_template
from chopjax.data.reader import BadExample
from chopjax.errors import UserError

SST2 = read_template("sst2")


def write(path: Path, *rows: dict[str, Any]) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


def test_fields_that_are_usual_and_fields_by_name(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"sentence": "dull", "label": 0},
        {"text": "fine é", "label": "positive"},
    ]
    names = write(tmp_path / "a.jsonl", *rows)
    assert read_examples(names, SST2, None, "label") == [Example("dull", 0), Example("fine é", 1)]
    names = write(tmp_path / "b.jsonl", {"review": "dull", "text": "x", "gold": "1"})
    assert read_examples(names, SST2, "review", "gold") == [Example("dull", 1)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x", "label": 2}, r"b\.jsonl:2: label 2: no word of template sst2 has it"),
        ({"text": "x", "label": None}, "label None: no word"),
        ({"text": "x"}, "no field 'label'; name another with --label-field .*here: text"),
        ({"body": "x", "label": 0}, "no field 'text'; name another with --field .*here: body, l"),
        ({"text": 3, "label": 0}, "field 'text' is 3, no text"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    names = write(tmp_path / "b.jsonl", {"text": "a", "label": 0}, row)
    with pytest.raises(UserError, match=said):
        read_examples(names, SST2, None, "label")


def test_labels_of_a_data_set_of_hugging_face(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    found = read_examples([f"hf:{tmp_path}"], SST2, None, "label")
    assert found == [Example("a", 1), Example("b", 0)]


def test_an_example_as_tfds_has_it() -> None:
    example = {"sentence": "dull é".encode(), "label": np.int64(1), "idx": np.int32(3)}
    assert json.loads(document(example, "", SST2, "label")) == ["dull é", 1]
    with pytest.raises(BadExample, match="label -1: no word of template sst2"):
        document(example | {"label": np.int64(-1)}, "", SST2, "label")  # GLUE's test splits


def test_a_fingerprint_is_of_texts_and_classes() -> None:
    one = [Example("a", 0), Example("b", 1)]
    others = ([Example("a", 1), Example("b", 1)], [Example("a", 0)], one[::-1], [Example("a b", 0)])
    assert fingerprint(one) not in {fingerprint(other) for other in others}
    assert fingerprint(list(one)) == fingerprint(one)


def test_texts_in_both_files(capsys: pytest.CaptureFixture[str]) -> None:
    train = [Example("a", 0), Example("b", 1)]
    check_apart(train, [Example("c", 0), Example("d", 1)])
    assert capsys.readouterr().err == ""
    check_apart(train, [Example("c", 0), Example("b", 0)])
    assert "1 of the 2 texts of --test stand in --train, too" in capsys.readouterr().err
    with pytest.raises(UserError, match="each of its 2 texts is one of --train's"):
        check_apart(train, train[::-1])
